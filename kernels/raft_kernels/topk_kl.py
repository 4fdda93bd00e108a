"""topk_kl: the divergence between teacher and student on the teacher's K tokens, per token, with its gradient.

    z_i = student logit of token i of the set S, u = z / T, q = softmax_S(u), p = softmax_S(teacher logits / T_teacher)
    loss = T^2 D(p, q)                                                         (Eqs. 8-10; D and dD/du in divergence.py)
    dloss/dz_i = T dD/du_i; for the forward KL that is T (q_i - p_i): at most K non-zeros per token
    dhidden = sum_i dz_i W_i,  dW_i = sum_tokens dz_i hidden,  db_i = sum_tokens dz_i
With tail="bucket" there is one more class with the rest of the mass, u_rest = logsumexp_{v not in S} z_v / T, and
dloss/dz_v = dloss/du_rest exp(z_v / T - u_rest) / T for every v not in S.

The forward pass keeps dloss/dy [N, K] for the backward pass, which then needs products alone and no softmax.
"""

import torch
from torch import Tensor

from . import topk_kl_torch
from .checks import check_choice, check_linear, check_positive, flat_mask, vocabulary
from .dispatch import choose_backend
from .divergence import DIVERGENCES
from .head import Head, accumulate_dtype, operand_dtype
from .topk import TopK

TAILS = ("renormalize", "bucket")


@torch.library.custom_op("raft_kernels::topk_kl", mutates_args=())
def _topk_kl(
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    bias: Tensor | None,  # (V,)
    indices: Tensor,  # (N, K) int32
    teacher_logits: Tensor,  # (N, K)
    log_partition: Tensor | None,  # (N,); present means tail="bucket"
    mask: Tensor | None,  # (N,) bool
    vocab: int,
    logit_scale: float,
    softcap: float | None,
    operands: torch.dtype,
    temperature: float,
    teacher_temperature: float,
    divergence: str,
    beta: float,
    loss_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    head = Head(weight, bias, vocab, logit_scale, softcap, operands)
    with torch.autocast(hidden.device.type, enabled=False):
        return topk_kl_torch.forward(
            head,
            hidden,
            indices,
            teacher_logits,
            log_partition,
            mask,
            temperature,
            teacher_temperature,
            divergence,
            beta,
            loss_scale,
        )


@_topk_kl.register_fake
def _(
    hidden, weight, bias, indices, teacher_logits, log_partition, mask, vocab, logit_scale, softcap, operands, *_rest
):
    n, k = indices.shape
    bucket = log_partition is not None
    new = torch.empty((n,), dtype=accumulate_dtype(operands), device=hidden.device)
    return new, new.new_empty((n, k + bucket)), new.new_empty((n if bucket else 0,))


@torch.library.custom_op("raft_kernels::topk_kl_backward", mutates_args=())
def _topk_kl_backward(
    grad_loss: Tensor,  # (N,)
    gradient: Tensor,  # (N, K or K + 1)
    rest: Tensor,  # (N or 0,)
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    bias: Tensor | None,  # (V,)
    indices: Tensor,  # (N, K) int32
    mask: Tensor | None,  # (N,) bool
    needs: list[bool],  # hidden, weight, bias
    vocab: int,
    logit_scale: float,
    softcap: float | None,
    operands: torch.dtype,
    temperature: float,
) -> list[Tensor]:
    """The gradients that are needed, in the order hidden, weight, bias."""
    head = Head(weight, bias, vocab, logit_scale, softcap, operands)
    with torch.autocast(hidden.device.type, enabled=False):
        grads = topk_kl_torch.backward(head, grad_loss, gradient, rest, hidden, indices, mask, needs, temperature)
    return [
        g.to(x.dtype) for g, x in zip(grads, (hidden, weight, bias), strict=True) if g is not None and x is not None
    ]


@_topk_kl_backward.register_fake
def _(grad_loss, gradient, rest, hidden, weight, bias, indices, mask, needs, *_rest):
    inputs = zip((hidden, weight, bias), needs, strict=True)
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x, need in inputs if need]


def _setup_context(ctx, inputs, output):
    hidden, weight, bias, indices, _, _, mask, *settings = inputs
    _, gradient, rest = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(gradient, rest)
    ctx.save_for_backward(gradient, rest, hidden, weight, bias, indices, mask)
    ctx.settings = settings[:5]


def _backward(ctx, grad_loss, _grad_gradient, _grad_rest):
    needs = list(ctx.needs_input_grad[:3])
    if grad_loss is None:
        return (None,) * 16
    grads = iter(_topk_kl_backward(grad_loss, *ctx.saved_tensors, needs, *ctx.settings))
    return (*(next(grads) if need else None for need in needs), *(None,) * 13)


_topk_kl.register_autograd(_backward, setup_context=_setup_context)


def topk_kl(
    hidden: Tensor,  # (..., H)
    weight: Tensor,  # (V, H)
    teacher: TopK,  # (..., K)
    *,
    temperature: float = 1.5,
    teacher_temperature: float | None = None,
    divergence: str = "forward",
    beta: float = 0.5,
    tail: str = "renormalize",
    scale_by_t2: bool = True,
    bias: Tensor | None = None,  # (V,)
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    mask: Tensor | None = None,  # (...)
    backend: str | None = None,
) -> Tensor:  # (...) fp32, or fp64 for fp64 inputs
    """Divergence per token between the teacher's top-K distribution and the student's on the same ids (Eqs. 8-10).

    `divergence`: "forward" KL(teacher || student), "reverse", or "jsd" with `beta`, the weight of the teacher in the
    mixture. `tail`: "renormalize" compares softmaxes over the K ids; "bucket" adds one class with the rest of the mass,
    and needs `teacher.log_partition` at the teacher's temperature. `scale_by_t2` multiplies by temperature**2. `mask`
    is true where a token counts; the others have loss 0 and gradient 0, whatever they hold. The gradient goes to
    hidden, weight and bias, to each only if it requires one.
    """
    op = "topk_kl"
    choose_backend(backend, op)
    check_linear(op, hidden, weight, bias)
    check_choice(op, "divergence", divergence, DIVERGENCES)
    check_choice(op, "tail", tail, TAILS)
    check_positive(op, temperature=temperature, teacher_temperature=teacher_temperature, softcap=softcap)
    if not 0 < beta < 1:
        raise ValueError(
            f"{op}: beta={beta!r} must lie between 0 and 1; its ends are divergence='forward' and 'reverse'"
        )
    vocab = vocabulary(op, weight.shape[0], vocab_size)
    indices, logits, log_partition = teacher
    lead, k = hidden.shape[:-1], indices.shape[-1]
    expected = {"indices": (*lead, k), "logits": (*lead, k), "log_partition": tuple(lead)}
    for name, x in teacher._asdict().items():
        if x is not None and x.shape != expected[name]:
            raise ValueError(
                f"{op}: teacher.{name} {tuple(x.shape)} must be {expected[name]} for hidden {tuple(hidden.shape)}"
            )
    if not 1 <= k <= vocab:
        raise ValueError(f"{op}: the teacher has K={k} tokens, the student's vocabulary {vocab}")
    if tail == "bucket" and log_partition is None:
        raise ValueError(f"{op}: tail='bucket' needs teacher.log_partition; linear_topk gives it with log_partition_at")
    # With every token in the set there is no rest, and both tails are the same.
    bucket = tail == "bucket" and k < vocab
    loss, _, _ = _topk_kl(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        bias,
        indices.detach().reshape(-1, k).to(torch.int32),
        logits.detach().reshape(-1, k),
        log_partition.detach().reshape(-1) if bucket and log_partition is not None else None,
        flat_mask(op, mask, hidden),
        vocab,
        float(logit_scale),
        None if softcap is None else float(softcap),
        operand_dtype(hidden, weight),
        float(temperature),
        float(temperature if teacher_temperature is None else teacher_temperature),
        divergence,
        float(beta),
        float(temperature) ** 2 if scale_by_t2 else 1.0,
    )
    return loss.view(lead)
