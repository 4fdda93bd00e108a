"""linear_topk: the exact top-K of hidden @ weight.T per token, without the [N, V] logits.

    z = logits of the head (head.py);  S = the K ids with the largest z, most probable at any temperature (Eq. 9)
    log_partition = log sum_v exp(z_v / T) over the whole vocabulary (Eq. 8), on request: tail="bucket", mass covered

A chunk of tokens at a time: project into one [n, V] buffer, select, keep [n, K].
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from .checks import check_linear, check_positive, flat_mask, vocabulary
from .dispatch import choose_backend
from .head import Head, accumulate_dtype, masked, operand_dtype
from .parallel import combine_topk, gathered, shard
from .select import block_size, select_blocked


class TopK(NamedTuple):
    """The teacher's K most probable tokens per position."""

    indices: Tensor  # [N, K] int32, ascending within a row, unique
    logits: Tensor  # [N, K] float32 (float64 for float64 inputs), after scale and soft-cap, before temperature
    log_partition: Tensor | None = None  # [N], dtype of logits: logsumexp of logits/T over the whole vocabulary


@torch.library.custom_op("raft_kernels::linear_topk", mutates_args=())
def _linear_topk(
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    bias: Tensor | None,  # (V,)
    mask: Tensor | None,  # (N,) bool
    k: int,
    vocab: int,
    logit_scale: float,
    softcap: float | None,
    operands: torch.dtype,
    log_partition_at: float | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ids (N, K), logits (N, K) and the log-partition, (N,) or empty."""
    head = Head(weight, bias, vocab, logit_scale, softcap, operands, backend)
    n = hidden.shape[0]
    indices = hidden.new_empty((n, k), dtype=torch.int32)
    logits = hidden.new_empty((n, k), dtype=head.dtype)
    log_partition = hidden.new_empty((n if log_partition_at is not None else 0,), dtype=head.dtype)
    with torch.cuda.device_of(hidden), torch.autocast(hidden.device.type, enabled=False):
        if backend == "triton":
            from .gpu import topk as gpu

            gpu.linear_topk(head, hidden, mask, k, log_partition_at, indices, logits, log_partition)
        else:
            _select_in_torch(head, hidden, mask, k, log_partition_at, indices, logits, log_partition)
    return indices, logits, log_partition


def _select_in_torch(
    head: Head,
    hidden: Tensor,  # (N, H)
    mask: Tensor | None,  # (N,) bool
    k: int,
    log_partition_at: float | None,
    indices: Tensor,  # (N, K): written
    logits: Tensor,  # (N, K): written
    log_partition: Tensor,  # (N or 0,): written
) -> None:
    block = block_size(head.vocab, k)
    for rows, buffer in head.walk(hidden, -(-head.vocab // block) * block):
        buffer[:, head.vocab :] = -torch.inf
        z = head.logits_(buffer[:, : head.vocab], masked(hidden, mask, rows))
        ids = select_blocked(buffer, k, block)
        indices[rows] = ids
        logits[rows] = z.gather(1, ids)
        if log_partition_at is not None:
            log_partition[rows] = head.log_partition_(z, log_partition_at)


@_linear_topk.register_fake
def _(hidden, weight, bias, mask, k, vocab, logit_scale, softcap, operands, log_partition_at, backend):
    n = hidden.shape[0]
    logits = torch.empty((n, k), dtype=accumulate_dtype(operands), device=hidden.device)
    return logits.new_empty((n, k), dtype=torch.int32), logits, logits.new_empty((n if log_partition_at else 0,))


def linear_topk(
    hidden: Tensor,  # (..., H)
    weight: Tensor,  # (V, H)
    k: int,
    *,
    bias: Tensor | None = None,  # (V,)
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    mask: Tensor | None = None,  # (...)
    log_partition_at: float | None = None,
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> TopK:  # fields (..., K), (..., K) and (...)
    """The exact K largest logits per token and their ids. Ties go to the lowest id. No gradient.

    hidden [..., H] and weight [V, H]: bf16, fp16, fp32 or fp64. Rows of the head from `vocab_size` on are padding, and
    never chosen. `mask` is true where a token counts; the others get ids 0..K-1 and logits 0, whatever they hold.
    `log_partition_at` is the temperature for which the log-partition over the vocabulary is computed. With `group`,
    `weight` and `bias` are this rank's rows of a vocabulary-parallel head (parallel.py). A DTensor head is gathered.
    """
    op = "linear_topk"
    weight, bias = gathered(weight.detach(), None if bias is None else bias.detach())
    check_linear(op, hidden, weight, bias)
    operands = operand_dtype(hidden, weight)
    backend = choose_backend(backend, op, hidden.device, operands)
    part = None if group is None else shard(op, group, weight, vocab_size)
    vocab = vocabulary(op, weight.shape[0], vocab_size) if part is None else part.vocab
    if k > vocab:
        raise ValueError(f"{op}: k={k} is larger than the vocabulary of {vocab} tokens")
    if k < 1:
        raise ValueError(f"{op}: k={k} must be at least 1")
    check_positive(op, softcap=softcap, log_partition_at=log_partition_at)
    lead, keep = hidden.shape[:-1], flat_mask(op, mask, hidden)
    here = vocab if part is None else part.tokens
    indices, logits, log_partition = _linear_topk(
        hidden.detach().reshape(-1, hidden.shape[-1]),
        weight,
        bias,
        keep,
        min(k, here),
        here,
        float(logit_scale),
        None if softcap is None else float(softcap),
        operands,
        None if log_partition_at is None else float(log_partition_at),
        backend,
    )
    if part is not None:
        indices, logits, log_partition = combine_topk(part, indices, logits, log_partition, k)
    if keep is not None:
        drop = ~keep
        indices = torch.where(drop.unsqueeze(1), torch.arange(k, dtype=torch.int32, device=drop.device), indices)
        logits.masked_fill_(drop.unsqueeze(1), 0)
        log_partition.masked_fill_(drop[: len(log_partition)], 0)
    return TopK(
        indices.view(*lead, k),
        logits.view(*lead, k),
        None if log_partition_at is None else log_partition.view(lead),
    )
