"""Plain-torch twins of the operations, on full [N, V] logits: the oracle of tests and the baseline of benchmarks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .topk import TopK


def logits_ref(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, logit_scale: float, softcap: float | None
) -> Tensor:
    y = logit_scale * F.linear(hidden, weight, bias)
    return y if softcap is None else softcap * torch.tanh(y / softcap)


def linear_topk_ref(
    hidden: Tensor,  # (..., H)
    weight: Tensor,  # (V, H)
    k: int,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    log_partition_at: float | None = None,
) -> TopK:
    z = logits_ref(hidden, weight, bias, logit_scale, softcap)[..., :vocab_size]
    indices = torch.sort(z, dim=-1, descending=True, stable=True).indices[..., :k].sort(-1).values
    log_partition = None if log_partition_at is None else torch.logsumexp(z / log_partition_at, dim=-1)
    return TopK(indices.to(torch.int32), z.gather(-1, indices), log_partition)


def topk_kl_ref(
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
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
) -> Tensor:  # (...)
    u = logits_ref(hidden, weight, bias, logit_scale, softcap)[..., :vocab_size] / temperature
    t = teacher.logits / (teacher_temperature or temperature)
    ids = teacher.indices.long()
    if tail == "bucket" and teacher.log_partition is not None:
        log_q, log_p = torch.log_softmax(u, -1).gather(-1, ids), t - teacher.log_partition.unsqueeze(-1)
        q, p = (torch.cat([x.exp(), 1 - x.exp().sum(-1, keepdim=True)], -1) for x in (log_q, log_p))
    else:
        q, p = torch.softmax(u.gather(-1, ids), -1), torch.softmax(t, -1)
    log_q, log_p = q.log(), p.log()
    if divergence == "jsd":
        log_m = (beta * p + (1 - beta) * q).log()
        loss = (beta * p * (log_p - log_m) + (1 - beta) * q * (log_q - log_m)).sum(-1)
    else:
        loss = ((p if divergence == "forward" else -q) * (log_p - log_q)).sum(-1)
    return loss * temperature**2 if scale_by_t2 else loss


def linear_cross_entropy_ref(
    hidden: Tensor,  # (..., H)
    weight: Tensor,  # (V, H)
    labels: Tensor,  # (...)
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    bias: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    z = logits_ref(hidden, weight, bias, 1.0, softcap)
    loss = F.cross_entropy(z.flatten(0, -2), labels.flatten(), ignore_index=ignore_index, reduction=reduction)
    return loss.view(labels.shape) if reduction == "none" else loss
