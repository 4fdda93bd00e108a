"""Forgetting-aware pruning of the task vector (Huang, Cheng, Wang, EMNLP 2025, arXiv 2509.08255).

    dW = W_ft - W_pre
    S  = |dW| - mean(|W_pre|) * |dW| / |W_pre|        the mean is over all of W_pre
    W  = W_pre + dW where S is among the largest, W_pre elsewhere

The second term lowers the score of changes that are large relative to the weight, since they cause forgetting. Each
tensor keeps the share 1 - sparsity of its own entries, rounded down.

"Each tensor" is every parameter: embeddings, the head (once if tied), norms and biases too. The paper speaks of weight
matrices, but its authors' code (github.com/user2311717757/FAPM) processes the whole state dict; a line that would skip
embeddings and norms is commented out. We run the baseline as its authors do.

Choices where the formula is open or where that code rounds differently:
- W_pre = 0: S is -inf, the limit of the formula. Such a change is kept only if the share is not filled by others.
- dW = 0: S is 0, also where W_pre is 0. The entry counts as kept if it ranks high enough.
- Equal scores: the entry that comes first in the tensor is kept, so the count is exact and the same on every rank.
- Scores are float32, also for bf16 weights (float64 for float64). A kept entry is exactly W_ft, not a rounded sum.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

import torch
from torch import Tensor

from raft.merging.base import Merge
from raft.settings.schema import Share


@dataclass(frozen=True)
class FAPMMerge(Merge):
    """Resets each tensor's entries to the base, except the share 1 - sparsity with the highest scores."""

    name = "fapm"
    citation = "Huang, Cheng, Wang, EMNLP 2025, arXiv 2509.08255"

    sparsity: Share = 0.9
    """Share of each tensor's entries that are reset to the base."""

    def tensor(self, name: str, base: Tensor | None, tuned: Sequence[Tensor]) -> Tensor:
        assert base is not None
        return pruned(tuned[0], base, self.sparsity)


def pruned(tuned: Tensor, base: Tensor, sparsity: float) -> Tensor:
    """W of the formula above, in the shape and dtype of `tuned`."""
    base = base.to(tuned.dtype)  # rounding to another precision is no change
    keep = _largest(_scores(tuned, base), kept_entries(tuned.numel(), sparsity))
    return torch.where(keep.view_as(tuned), tuned, base)


def kept_entries(entries: int, sparsity: float) -> int:
    """Number of entries that are kept. Decimal, since 10 * (1 - 0.9) is 0.99... as a float, which rounds down to 0."""
    return math.floor(entries * (1 - Decimal(str(sparsity))))


def _scores(tuned: Tensor, base: Tensor) -> Tensor:
    """S: [entries], float32 or float64."""
    dtype = torch.promote_types(tuned.dtype, torch.float32)
    size = base.to(dtype).abs()
    change = (tuned.to(dtype) - base.to(dtype)).abs()
    scores = (change / size).mul_(-size.mean()).add_(change)
    return scores.masked_fill_(size == 0, -math.inf).masked_fill_(change == 0, 0.0).flatten()


def _largest(scores: Tensor, count: int) -> Tensor:
    """[n] bool: True for the `count` largest of [n] scores; of equal scores the first come first.

    The threshold is found by bisection over the scores' bit patterns: 32 or 64 passes, which cost less than a training
    step. A sort would need [n] int64 indices, and topk and kthvalue do not define which of equal scores they take.
    """
    keys = scores.view(torch.int32 if scores.dtype == torch.float32 else torch.int64)
    limits = torch.iinfo(keys.dtype)
    # As integers, the bits of floats are ordered like the floats once the lower bits of negative ones are flipped.
    keys = torch.where(keys < 0, keys ^ limits.max, keys)
    lowest = _first(limits.min, limits.max, lambda key: int((keys > key).count_nonzero()) < count)
    keep, equal = keys > lowest, keys == lowest
    missing = count - int(keep.count_nonzero())
    end = _first(0, len(equal), lambda i: int(equal[:i].count_nonzero()) >= missing)
    keep[:end] |= equal[:end]
    return keep


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The smallest number in [low, high) for which the monotone `holds` is True; `high` if there is none."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
