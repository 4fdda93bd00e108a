"""topk_metrics: how well a teacher's top-K covers both models, in one call, without gradients and without [N, V]
logits."""

from typing import NamedTuple

import torch
from torch import Tensor

from .checks import check_ids, check_linear, check_positive, flat_mask, vocabulary
from .dispatch import choose_backend
from .head import Head, accumulate_dtype, operand_dtype
from .parallel import gathered
from .topk import TopK


class TopKMetrics(NamedTuple):
    """One value per token; 0 at masked tokens, so divide sums by mask.sum()."""

    teacher_mass: Tensor | None  # probability of the teacher inside the set; None without teacher.log_partition
    student_mass: Tensor  # probability of the student inside the set
    teacher_entropy: Tensor  # of the teacher renormalised to the set (Eq. 9), in nats
    student_entropy: Tensor  # of the student renormalised to the set (Eq. 9), in nats
    top1_agreement: Tensor  # 1 where teacher and student have the same most probable token of the vocabulary, else 0


def _entropy(logits: Tensor) -> Tensor:
    log_p = torch.log_softmax(logits, dim=-1)
    p = log_p.exp()
    return -(p * torch.where(p > 0, log_p, 0.0)).sum(-1)


@torch.library.custom_op("raft_kernels::topk_metrics", mutates_args=())
def _topk_metrics(
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    bias: Tensor | None,  # (V,)
    indices: Tensor,  # (N, K) int64
    teacher_logits: Tensor,  # (N, K)
    vocab: int,
    logit_scale: float,
    softcap: float | None,
    operands: torch.dtype,
    temperature: float,
    teacher_temperature: float,
    backend: str,
) -> Tensor:
    """(4, N): student mass, teacher entropy, student entropy, top-1 agreement."""
    head = Head(weight, bias, vocab, logit_scale, softcap, operands, backend)
    n = hidden.shape[0]
    out = hidden.new_empty((4, n), dtype=head.dtype)
    with torch.cuda.device_of(hidden), torch.autocast(hidden.device.type, enabled=False):
        for rows, buffer in head.walk(hidden):
            ids, t = indices[rows], teacher_logits[rows].to(head.dtype)
            z = head.logits_(buffer, hidden[rows])
            u = z.gather(1, ids) / temperature
            teacher_top = ids.gather(1, t.argmax(-1, keepdim=True)).squeeze(1)
            out[3, rows] = (z.argmax(-1) == teacher_top).to(head.dtype)
            out[0, rows] = (u - head.log_partition_(z, temperature).unsqueeze(1)).exp().sum(-1)
            out[1, rows] = _entropy(t / teacher_temperature)
            out[2, rows] = _entropy(u)
    return out


@_topk_metrics.register_fake
def _(hidden, weight, bias, indices, teacher_logits, vocab, logit_scale, softcap, operands, *_settings):
    return hidden.new_empty((4, hidden.shape[0]), dtype=accumulate_dtype(operands))


def topk_metrics(
    hidden: Tensor,  # (..., H) of the student
    weight: Tensor,  # (V, H)
    teacher: TopK,  # (..., K)
    *,
    temperature: float = 1.5,
    teacher_temperature: float | None = None,
    bias: Tensor | None = None,  # (V,)
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    mask: Tensor | None = None,  # (...)
    backend: str | None = None,
) -> TopKMetrics:  # fields (...)
    """Mass covered, entropies and top-1 agreement per token. One pass over the student's head; no gradient.

    `teacher_mass` needs `teacher.log_partition`, at the teacher's temperature.
    """
    op = "topk_metrics"
    weight, bias = gathered(weight.detach(), None if bias is None else bias.detach())
    check_linear(op, hidden, weight, bias)
    operands = operand_dtype(hidden, weight)
    backend = choose_backend(backend, op, hidden.device, operands)
    check_positive(op, temperature=temperature, teacher_temperature=teacher_temperature, softcap=softcap)
    lead, k = hidden.shape[:-1], teacher.indices.shape[-1]
    check_ids(op, teacher.indices)
    keep = flat_mask(op, mask, hidden)
    x = hidden.detach().reshape(-1, hidden.shape[-1])
    ids, logits = teacher.indices.detach().reshape(-1, k).long(), teacher.logits.detach().reshape(-1, k)
    if keep is not None:
        x, ids, logits = (t.masked_fill(~keep.unsqueeze(1), 0) for t in (x, ids, logits))
    teacher_t = float(temperature if teacher_temperature is None else teacher_temperature)
    rows = _topk_metrics(
        x,
        weight,
        bias,
        ids,
        logits,
        vocabulary(op, weight.shape[0], vocab_size),
        float(logit_scale),
        None if softcap is None else float(softcap),
        operands,
        float(temperature),
        teacher_t,
        backend,
    )
    columns = list(rows.unbind(0))
    if teacher.log_partition is not None:
        columns.append((logits / teacher_t - teacher.log_partition.detach().reshape(-1, 1)).exp().sum(-1))
    if keep is not None:
        columns = [c.masked_fill(~keep, 0) for c in columns]
    student_mass, teacher_entropy, student_entropy, agreement, *teacher_mass = (c.view(lead) for c in columns)
    return TopKMetrics(
        teacher_mass[0] if teacher_mass else None, student_mass, teacher_entropy, student_entropy, agreement
    )
