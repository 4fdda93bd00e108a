"""Heads that are split over ranks.

- Vocabulary-parallel: `group=` and this rank's rows of the head, the same number on every rank, in order of rank.
  Hidden states are the same on all ranks, and so are results. A rank computes the logits of its own ids:
      top-K of all = top-K of the ranks' top-Ks;  z = sum over ranks of the logits that each of them has
  and in the backward pass dhidden is summed over ranks. [N, K] values are exchanged, never logits of the vocabulary.
- FSDP2: a head that is a DTensor is gathered for the call. Each rank has tokens of its own; the head's gradient is
  averaged over the ranks, as FSDP2 does.
"""

import functools
import sys
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from .select import select


@dataclass(frozen=True)
class Shard:
    """This rank's part of the vocabulary."""

    group: dist.ProcessGroup
    first: int  # id of its first row
    rows: int
    vocab: int  # how many ids there are in all: rows from there on are padding

    @property
    def tokens(self) -> int:
        """How many of its rows are ids. At least 1, so that products are not empty; `empty` says when there is none."""
        return max(1, min(self.rows, self.vocab - self.first))

    @property
    def empty(self) -> bool:
        return self.first >= self.vocab


@functools.cache
def _check_equal(op: str, group: dist.ProcessGroup, rows: int, device: torch.device) -> None:
    """Checked once per group and shape: a different number of rows on another rank would silently give wrong ids."""
    ends = torch.tensor([rows, -rows], device=device)
    dist.all_reduce(ends, dist.ReduceOp.MAX, group=group)
    most, least = int(ends[0]), -int(ends[1])
    if most != least:
        raise ValueError(f"{op}: the ranks of group hold between {least} and {most} rows of the head; pad to the same")


def shard(op: str, group: dist.ProcessGroup, weight: Tensor, vocab_size: int | None) -> Shard:
    rows, ranks = weight.shape[0], dist.get_world_size(group)
    _check_equal(op, group, rows, weight.device)
    if vocab_size is not None and not 1 <= vocab_size <= rows * ranks:
        raise ValueError(f"{op}: vocab_size={vocab_size} must lie in 1..{rows * ranks}, the rows of all ranks")
    return Shard(group, dist.get_rank(group) * rows, rows, vocab_size or rows * ranks)


def _gather(x: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x.contiguous(), group=group)
    return parts


def combine_topk(
    part: Shard,
    indices: Tensor,  # (N, k') int32: this rank's best, ascending, counted from its first row
    logits: Tensor,  # (N, k')
    log_partition: Tensor,  # (N or 0,)
    k: int,
) -> tuple[Tensor, Tensor, Tensor]:  # (N, k) int32 ids, (N, k), (N or 0,): the same on every rank
    width = min(k, part.rows)
    if part.empty:
        logits, log_partition = torch.full_like(logits, -torch.inf), torch.full_like(log_partition, -torch.inf)
    # Only ranks at the end of the vocabulary lack ids, so the padding of their lists comes after every real id.
    pad = (0, width - indices.shape[1])
    ids = torch.cat(_gather(torch.nn.functional.pad(indices + part.first, pad), part.group), dim=1)
    z = torch.cat(_gather(torch.nn.functional.pad(logits, pad, value=-torch.inf), part.group), dim=1)
    best = select(z, k)
    ids, z = ids.gather(1, best), z.gather(1, best)
    if len(log_partition):
        log_partition = torch.stack(_gather(log_partition, part.group)).logsumexp(0)
    return ids, z, log_partition


class _CopyToRanks(torch.autograd.Function):
    """All ranks have the same input; each computes a part of its gradient, and the parts are summed."""

    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _SumOverRanks(torch.autograd.Function):
    """Each rank has a part; the sum, and so its gradient, is the same on all ranks."""

    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None


def copied(hidden: Tensor, part: Shard) -> Tensor:
    return _CopyToRanks.apply(hidden, part.group)


def own_ids(part: Shard, indices: Tensor) -> tuple[Tensor, Tensor]:  # (N, K) int32 -> (N, K) int32, (N, K) bool
    """Ids counted from this rank's first row, 0 where another rank has the id; and which are its own."""
    local = indices - part.first
    own = (local >= 0) & (local < part.tokens) & (not part.empty)
    return local.masked_fill(~own, 0), own


def summed(z: Tensor, own: Tensor, part: Shard) -> Tensor:
    return _SumOverRanks.apply(torch.where(own, z, 0), part.group)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight) -> Tensor:
        ctx.mesh, ctx.placements = weight.device_mesh, weight.placements
        return weight.full_tensor()

    @staticmethod
    def backward(ctx, grad: Tensor):
        from torch.distributed.tensor import DTensor, Partial

        # The backend gloo has no average: each rank divides its part, and the parts are summed.
        share = DTensor.from_local(grad / ctx.mesh.size(), ctx.mesh, [Partial()] * ctx.mesh.ndim, run_check=False)
        return share.redistribute(placements=ctx.placements)


def gathered(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """DTensors are gathered in full, with gradients averaged over the mesh; other tensors are returned as they are."""
    # Importing this module takes seconds; while nobody has imported it, no tensor is a DTensor.
    module = sys.modules.get("torch.distributed.tensor")
    if module is None:
        return weight, bias
    if isinstance(bias, module.DTensor):
        bias = _Gathered.apply(bias)
    return _Gathered.apply(weight) if isinstance(weight, module.DTensor) else weight, bias
