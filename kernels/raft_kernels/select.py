"""Exact top-K of each row, ties to the lowest id, ids ascending: static shapes, no sort of whole rows, no host sync."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def block_size(vocab: int, k: int) -> int:
    """Ids per block for `select_blocked`. Blocks cost vocab/b and candidates k*b: least at b = sqrt(vocab/k)."""
    b = 1 << int(math.log2(max(1.0, vocab / k)) / 2)
    return b if b >= 4 else 1


def select(
    x: Tensor,  # (n, M) floats
    k: int,
) -> Tensor:  # (n, k) int64
    """Ids of the k largest entries of each row, ascending. Of equal entries the lowest ids win; NaN counts as +inf."""
    x = torch.nan_to_num(x, nan=math.inf, posinf=math.inf, neginf=-math.inf)
    threshold = x.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above = x > threshold
    equal = x == threshold
    room = k - above.sum(-1, keepdim=True, dtype=torch.int32)
    chosen = above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= room))
    # Every row has exactly k chosen entries, and nonzero lists them row by row in ascending order.
    return torch.nonzero_static(chosen, size=x.shape[0] * k)[:, 1].view(-1, k)


def select_blocked(
    x: Tensor,  # (n, M) floats, M a multiple of b
    k: int,
    b: int,
) -> Tensor:  # (n, k) int64
    """As `select`, in two rounds: the k blocks of b neighbours with the largest maxima hold the k largest entries.

    Why ties stay exact: let t be the k-th largest entry and c < k the number of entries above t. Blocks with a maximum
    above t are at most c, so all are kept; the k - c lowest ids equal to t lie in those blocks or in the k - c lowest
    blocks whose maximum equals t, and `select` keeps the lowest of these.
    """
    n, m = x.shape
    if b == 1 or m // b <= k:
        return select(x, k)
    blocks = select(F.max_pool1d(x, b, b), k)
    rows = torch.arange(n, device=x.device).unsqueeze(1) * (m // b)
    candidates = x.view(-1, b).index_select(0, (rows + blocks).view(-1)).view(n, k * b)
    local = select(candidates, k)
    return blocks.gather(1, local // b) * b + local % b
