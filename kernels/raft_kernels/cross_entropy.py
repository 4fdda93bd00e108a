"""linear_cross_entropy: cross-entropy of hidden @ weight.T, without the [N, V] logits.

Others do this well, so this module chooses among them:
- on CUDA with Liger installed: Liger's fused linear cross-entropy;
- fp32 and fp64 where torch has it (2.13 and later): torch's own chunked F.linear_cross_entropy;
- else, and for what these lack, chunks of tokens that are recomputed in the backward pass:
      loss_n = logsumexp_v z_nv - z_n,label,  dloss_n/dz_nv = softmax(z_n)_v - [v = label]
torch's own adds up bf16 losses and weight gradients in bf16, knows no soft-cap and breaks a compiled graph.
"""

import functools
import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_choice, check_linear, check_positive
from .head import Head, accumulate_dtype, logsumexp_, operand_dtype, walk
from .head_dense import backpropagate
from .parallel import gathered

REDUCTIONS = ("mean", "sum", "none")


@torch.library.custom_op("raft_kernels::linear_cross_entropy", mutates_args=())
def _chunked(
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    bias: Tensor | None,  # (V,)
    labels: Tensor,  # (N,) int64, all in 0..V-1
    softcap: float | None,
    operands: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Returns loss (N,) and logsumexp (N,)."""
    head = Head(weight, bias, weight.shape[0], 1.0, softcap, operands)
    loss = hidden.new_empty((hidden.shape[0],), dtype=head.dtype)
    partition = torch.empty_like(loss)
    with torch.autocast(hidden.device.type, enabled=False):
        for rows, buffer in walk(hidden.shape[0], head.vocab, hidden, head.dtype):
            z = head.logits_(buffer, hidden[rows])
            at_label = z.gather(1, labels[rows].unsqueeze(1)).squeeze(1)
            partition[rows] = logsumexp_(z)
            loss[rows] = partition[rows] - at_label
    return loss, partition


@_chunked.register_fake
def _(hidden, weight, bias, labels, softcap, operands):
    loss = hidden.new_empty((hidden.shape[0],), dtype=accumulate_dtype(operands))
    return loss, torch.empty_like(loss)


@torch.library.custom_op("raft_kernels::linear_cross_entropy_backward", mutates_args=())
def _chunked_backward(
    grad_loss: Tensor,  # (N,)
    partition: Tensor,  # (N,)
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    bias: Tensor | None,  # (V,)
    labels: Tensor,  # (N,) int64
    needs: list[bool],  # hidden, weight, bias
    softcap: float | None,
    operands: torch.dtype,
) -> list[Tensor]:
    """The gradients that are needed, in the order hidden, weight, bias."""
    head = Head(weight, bias, weight.shape[0], 1.0, softcap, operands)
    need_hidden, need_weight, need_bias = needs
    grad_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if need_hidden else None
    grad_weight = hidden.new_zeros(weight.shape, dtype=head.dtype) if need_weight else None
    grad_bias = hidden.new_zeros(weight.shape[:1], dtype=head.dtype) if need_bias else None
    with torch.autocast(hidden.device.type, enabled=False):
        for rows, buffer in walk(hidden.shape[0], head.vocab, hidden, head.dtype):
            x, upstream = hidden[rows], grad_loss[rows].to(head.dtype).unsqueeze(1)
            z = head.logits_(buffer, x)
            slope = head.slope(z)
            d = z.sub_(partition[rows].unsqueeze(1)).exp_()
            d.scatter_add_(1, labels[rows].unsqueeze(1), torch.full_like(upstream, -1.0))
            dx = backpropagate(head, d.mul_(upstream).mul_(slope), x, need_hidden, grad_weight, grad_bias)
            if grad_hidden is not None and dx is not None:
                grad_hidden[rows] = dx
    grads = zip((grad_hidden, grad_weight, grad_bias), (hidden, weight, bias), strict=True)
    return [g.to(x.dtype) for g, x in grads if g is not None and x is not None]


@_chunked_backward.register_fake
def _(grad_loss, partition, hidden, weight, bias, labels, needs, softcap, operands):
    inputs = zip((hidden, weight, bias), needs, strict=True)
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x, need in inputs if need]


def _setup_context(ctx, inputs, output):
    *tensors, softcap, operands = inputs
    _, partition = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(partition)
    ctx.save_for_backward(partition, *tensors)
    ctx.settings = (softcap, operands)


def _backward(ctx, grad_loss, _grad_partition):
    needs = list(ctx.needs_input_grad[:3])
    if grad_loss is None:
        return (None,) * 6
    grads = iter(_chunked_backward(grad_loss, *ctx.saved_tensors, needs, *ctx.settings))
    return (*(next(grads) if need else None for need in needs), None, None, None)


_chunked.register_autograd(_backward, setup_context=_setup_context)


@functools.cache
def _has_liger() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None


def choose_provider(
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    bias: Tensor | None,  # (V,)
    softcap: float | None,
) -> str:
    """One of "liger", "torch" and "chunked"."""
    params = [weight] if bias is None else [weight, bias]
    one_dtype = all(p.dtype == hidden.dtype for p in params) and operand_dtype(hidden, weight) == hidden.dtype
    if torch.compiler.is_compiling() or not one_dtype:
        return "chunked"
    # Liger computes gradients of the head only along with that of hidden.
    follows = hidden.requires_grad or not any(p.requires_grad for p in params)
    if hidden.device.type == "cuda" and _has_liger() and follows and hidden.dtype != torch.float64:
        return "liger"
    exact = hidden.dtype in (torch.float32, torch.float64)
    return "torch" if hasattr(F, "linear_cross_entropy") and exact and softcap is None else "chunked"


def _liger(
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    bias: Tensor | None,  # (V,)
    labels: Tensor,  # (N,) int64, ignored ones -100
    softcap: float | None,
    reduction: str,
) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    # Without accum_dtype, gradients of bf16 weights would be summed over chunks in bf16. Its mean over no label is 0.
    options = {"softcap": softcap, "reduction": reduction, "accum_dtype": torch.float32}
    return liger_fused_linear_cross_entropy(hidden, weight, labels, bias, **options)


def _native(
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    bias: Tensor | None,  # (V,)
    labels: Tensor,  # (N,) int64, ignored ones -100
    reduction: str,
) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions(allow_retain_graph=True)
    return F.linear_cross_entropy(hidden, weight, labels, linear_bias=bias, reduction=reduction, options=options)


def linear_cross_entropy(
    hidden: Tensor,  # (..., H)
    weight: Tensor,  # (V, H)
    labels: Tensor,  # (...)
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    bias: Tensor | None = None,  # (V,)
    softcap: float | None = None,
) -> Tensor:  # () or (...), fp32 (fp64 for fp64)
    """F.cross_entropy(softcap(hidden @ weight.T + bias), labels), in chunks.

    The mean is over labels that are not `ignore_index`; where there is none it is 0, attached to the graph. An ignored
    position has loss 0 and gradient 0, whatever its hidden state holds.
    """
    op = "linear_cross_entropy"
    weight, bias = gathered(weight, bias)
    check_linear(op, hidden, weight, bias)
    check_choice(op, "reduction", reduction, REDUCTIONS)
    check_positive(op, softcap=softcap)
    if labels.shape != hidden.shape[:-1]:
        raise ValueError(
            f"{op}: labels {tuple(labels.shape)} must have the leading sizes of hidden, {tuple(hidden.shape[:-1])}"
        )
    if labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ValueError(f"{op}: labels must be integers, got {labels.dtype}")
    flat = labels.reshape(-1).long()
    ignored = flat == ignore_index
    # Whatever an ignored position holds (NaN too), it must not reach a sum over tokens.
    x = hidden.reshape(-1, hidden.shape[-1]).masked_fill(ignored.unsqueeze(1), 0)
    provider = choose_provider(x, weight, bias, softcap)
    if provider == "liger":
        loss = _liger(x, weight, bias, flat.masked_fill(ignored, -100), softcap, reduction)
        return loss.view(labels.shape) if reduction == "none" else loss
    if provider == "torch":
        inner = "none" if reduction == "none" else "sum"
        loss = _native(x, weight, bias, flat.masked_fill(ignored, -100), inner)
    else:
        loss, _ = _chunked(x, weight, bias, flat.masked_fill(ignored, 0), softcap, operand_dtype(hidden, weight))
        loss = loss.masked_fill(ignored, 0)
        loss = loss if reduction == "none" else loss.sum()
    if reduction == "mean":
        # No label at all: 0 / 1, not 0 / 0.
        return loss / (~ignored).sum().clamp_min(1)
    return loss.view(labels.shape) if reduction == "none" else loss
