"""topk_kl: the divergence between teacher and student on the teacher's K tokens, per token, with its gradient.

    z = student's logits at the K ids of the set S                                                    (student/op.py)
    loss = T^2 D(softmax_S(t / T_teacher), softmax_S(z / T))                               (Eqs. 8-10; divergence.py)
With tail="bucket" both sides have one more class with the rest of the mass: z_rest = T logsumexp_{v not in S} z_v / T.
"""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from .checks import check_choice, check_ids, check_linear, check_positive, flat_mask, vocabulary
from .dispatch import choose_backend
from .divergence import DIVERGENCES, topk_divergence
from .head import operand_dtype
from .parallel import copied, gathered, own_ids, shard, summed
from .student.op import student_logits
from .topk import TopK

TAILS = ("renormalize", "bucket")


def _with_rest(
    t: Tensor,  # (N, K) teacher's logits
    log_partition: Tensor,  # (N,) at the teacher's temperature
    z_rest: Tensor,  # (N,) student's
    temperature: float,
) -> Tensor:  # (N, K + 1)
    """The teacher's logits, and the logit of all its other tokens together: T log(partition - sum_S exp(t / T))."""
    log_partition = log_partition.to(t.dtype)
    # If S holds all probability, 1 - sum_S p is rounding noise around 0; the floor keeps its logarithm finite.
    p_rest = (1 - (t / temperature - log_partition.unsqueeze(1)).exp().sum(-1)).clamp_min(torch.finfo(t.dtype).eps)
    t_rest = ((p_rest.log() + log_partition) * temperature).masked_fill(z_rest == -torch.inf, -torch.inf)
    return torch.cat([t, t_rest.unsqueeze(1)], dim=1)


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
    skip_below: float = 0.0,
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:  # (...) fp32, or fp64 for fp64 inputs
    """Divergence per token between the teacher's top-K distribution and the student's on the same ids (Eqs. 8-10).

    `divergence`: "forward" KL(teacher || student), "reverse", or "jsd" with `beta`, the weight of the teacher in the
    mixture. `tail`: "renormalize" compares softmaxes over the K ids; "bucket" adds one class with the rest of the mass,
    and needs `teacher.log_partition` at the teacher's temperature. `scale_by_t2` multiplies by temperature**2. `mask`
    is true where a token counts; the others have loss 0 and gradient 0, whatever they hold. The gradient goes to
    hidden, weight and bias, to each only if it requires one. `skip_below` omits from the backward pass the ids whose
    gradient is at most that share of the position's largest: together they make up at most K * skip_below of the
    largest, which is below the rounding error of the largest in bf16 if skip_below <= 2**-9 / K. With `group`, `weight`
    and `bias` are this rank's rows of a vocabulary-parallel head (parallel.py). A DTensor head is gathered.
    """
    op = "topk_kl"
    weight, bias = gathered(weight, bias)
    check_linear(op, hidden, weight, bias)
    operands = operand_dtype(hidden, weight)
    backend = choose_backend(backend, op, hidden.device, operands)
    check_choice(op, "divergence", divergence, DIVERGENCES)
    check_choice(op, "tail", tail, TAILS)
    check_positive(op, temperature=temperature, teacher_temperature=teacher_temperature, softcap=softcap)
    if divergence == "jsd" and not 0 < beta < 1:
        raise ValueError(
            f"{op}: beta={beta!r} must lie between 0 and 1; its ends are divergence='forward' and 'reverse'"
        )
    part = None if group is None else shard(op, group, weight, vocab_size)
    vocab = vocabulary(op, weight.shape[0], vocab_size) if part is None else part.vocab
    indices, logits, log_partition = teacher
    lead, k = hidden.shape[:-1], indices.shape[-1]
    check_ids(op, indices)
    expected = {"indices": (*lead, k), "logits": (*lead, k), "log_partition": tuple(lead)}
    for name, tensor in teacher._asdict().items():
        if tensor is not None and tensor.shape != expected[name]:
            raise ValueError(
                f"{op}: teacher.{name} {tuple(tensor.shape)} must be {expected[name]} for hidden {tuple(hidden.shape)}"
            )
    if not 1 <= k <= vocab:
        raise ValueError(f"{op}: the teacher has K={k} tokens, the student's vocabulary {vocab}")
    if not 0 <= skip_below < 1:
        raise ValueError(f"{op}: skip_below={skip_below!r} must lie in 0..1, without 1")
    if tail == "bucket" and log_partition is None:
        raise ValueError(f"{op}: tail='bucket' needs teacher.log_partition; linear_topk gives it with log_partition_at")
    temperature = float(temperature)
    teacher_temperature = temperature if teacher_temperature is None else float(teacher_temperature)
    if tail == "bucket" and part is not None:
        raise ValueError(f"{op}: tail='bucket' is not available for a vocabulary-parallel head (group=)")
    # With every token in the set there is no rest, and both tails are the same.
    bucket = tail == "bucket" and k < vocab
    keep = flat_mask(op, mask, hidden)
    x, ids = hidden.reshape(-1, hidden.shape[-1]), indices.detach().reshape(-1, k).to(torch.int32)
    if part is not None:
        x, (ids, own) = copied(x, part), own_ids(part, ids)
    z = student_logits(
        x,
        weight,
        bias,
        ids,
        keep,
        vocab if part is None else part.tokens,
        float(logit_scale),
        None if softcap is None else float(softcap),
        operands,
        temperature if bucket else None,
        backend,
        sparse_gradient=skip_below > 0,
    )
    if part is not None:
        z = summed(z, own, part)
    t = logits.detach().reshape(-1, k).to(z.dtype)
    if bucket and log_partition is not None:
        t = _with_rest(t, log_partition.detach().reshape(-1), z.detach()[:, k], teacher_temperature)
    scale = temperature**2 if scale_by_t2 else 1.0
    settings = (temperature, teacher_temperature, divergence, float(beta), scale, float(skip_below), backend)
    loss, _ = topk_divergence(z, t, keep, *settings)
    return loss.view(lead)
