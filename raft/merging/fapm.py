"""Forgetting-aware pruning of the task vector (Huang, Cheng, Wang, EMNLP 2025, arXiv 2509.08255).

    dW = W_ft - W_pre
    S  = |dW| - mean(|W_pre|) * |dW| / |W_pre|        the mean over all of W_pre
    W  = W_pre + dW where S is among the largest, W_pre elsewhere

The second term marks down changes that are large beside the weight that they change: those are the ones that make a
model forget. Each tensor keeps the same share of its own entries, 1 - sparsity of them, rounded down.

"Each tensor" is every parameter: embeddings, the head (once where it is tied to them), and vectors such as norms and
biases too. The paper speaks of weight matrices; its authors' code (github.com/user2311717757/FAPM) goes over the whole
state dict, with a line that would leave out embeddings and norms commented out. A baseline is to be run as its authors
run it.

Where the formula leaves something open, or differs from that code by rounding:
- W_pre = 0: S is -inf, the limit of the formula: such a change is kept only where the share is not filled otherwise.
- dW = 0: S is 0, also where W_pre is 0. There is nothing to keep, but the entry counts as kept if it ranks that high.
- Equal scores: the entry that comes first in the tensor is kept, so the count is exact and every rank keeps the same.
- Scores are float32 for bf16 weights too (float64 for float64), and a kept entry is W_ft to the bit, not a rounded sum.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

import torch
from torch import Tensor

from raft.merging.base import Merge, Share


@dataclass(frozen=True)
class FAPMMerge(Merge):
    """Puts all but the best-scored 1 - sparsity of each tensor's entries back to the base."""

    name = "fapm"
    citation = "Huang, Cheng, Wang, EMNLP 2025, arXiv 2509.08255"

    sparsity: Share = 0.9
    """Share of each tensor's entries that return to the base."""

    def tensor(self, name: str, base: Tensor | None, tuned: Sequence[Tensor]) -> Tensor:
        assert base is not None
        return pruned(tuned[0], base, self.sparsity)


def pruned(tuned: Tensor, base: Tensor, sparsity: float) -> Tensor:
    """W of the formula, in the shape and dtype of `tuned`."""
    keep = _largest(_scores(tuned, base), kept_entries(tuned.numel(), sparsity))
    return torch.where(keep.view_as(tuned), tuned, base)


def kept_entries(entries: int, sparsity: float) -> int:
    """How many of `entries` are kept. In decimals: 10 * (1 - 0.9) is 0.99... in floats and would round down to none."""
    return math.floor(entries * (1 - Decimal(str(sparsity))))


def _scores(tuned: Tensor, base: Tensor) -> Tensor:
    """S as [entries] of float32 or float64."""
    dtype = torch.promote_types(tuned.dtype, torch.float32)
    size = base.to(dtype).abs()
    change = (tuned.to(dtype) - base.to(dtype)).abs()
    scores = (change / size).mul_(-size.mean()).add_(change)
    return scores.masked_fill_(size == 0, -math.inf).masked_fill_(change == 0, 0.0).flatten()


def _largest(scores: Tensor, count: int) -> Tensor:
    """[n] bool: true for the `count` largest of [n] scores, of equal ones the first.

    By bisection over the scores' bits: a sort would hold [n] int64 indices, and neither topk nor kthvalue says which of
    equal scores it takes. 32 or 64 passes over a tensor cost less than one step of training.
    """
    keys = scores.view(torch.int32 if scores.dtype == torch.float32 else torch.int64)
    limits = torch.iinfo(keys.dtype)
    # The bits of a float are in its order once those of the negative ones below the sign are flipped.
    keys = torch.where(keys < 0, keys ^ limits.max, keys)
    lowest = _first(limits.min, limits.max, lambda key: int((keys > key).count_nonzero()) < count)
    keep, equal = keys > lowest, keys == lowest
    missing = count - int(keep.count_nonzero())
    end = _first(0, len(equal), lambda i: int(equal[:i].count_nonzero()) >= missing)
    keep[:end] |= equal[:end]
    return keep


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first number from `low` on for which `holds`, as it does for all after it; `high` if there is none before."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
