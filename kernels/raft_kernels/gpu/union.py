"""Which rows of the head a tile of neighbouring tokens needs, and which tokens a tile of neighbouring ids needs.

The K ids of one token fill no tensor-core tile, but the ids of 128 neighbouring tokens do: their union is at most
128 K ids, 40 % of 128k if tokens agree only by chance (K = 512), a few percent in text. Products run over the union, in
order; logits that a token did not ask for are computed and dropped. Counts stay on the device: programs beyond a tile's
count return at once, so that the work follows the data without a host sync.

In text most tokens use the same few ids, and each other id is used by a few tokens that stand together. `by_use` orders
ids so that neighbours are used by the same tokens: the tokens of a tile of ids are then few, or use all of its ids.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import CompactConfig


class Lists(NamedTuple):
    """The ids in use by each tile of neighbouring tokens, and where each entry of a token is in its tile's list."""

    members: Tensor  # (tiles, capacity) int32: the ids in use by a tile, ascending, then 0
    sizes: Tensor  # (tiles,) int32
    columns: Tensor  # (N, K) int32; `capacity` where an entry is not in use


@triton.jit(do_not_specialize=["m"])
def compact_kernel(
    used,  # (tiles, stride) bool
    members,  # (tiles, capacity) int32
    sizes,  # (tiles,) int32
    places,  # (tiles, M + 1) int32
    m,
    stride,
    capacity,
    PLACES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The members in use of one tile, ascending, and for each of the M its place among them. Program: one tile."""
    tile = tl.program_id(0).to(tl.int64)
    size = tl.full((), 0, tl.int32)
    for start in range(0, m, BLOCK):
        lane = start + tl.arange(0, BLOCK)
        mine = tl.load(used + tile * stride + lane, mask=lane < m, other=0).to(tl.int32)
        place = size + tl.cumsum(mine, 0) - 1
        tl.store(members + tile * capacity + place, lane, mask=mine != 0)
        if PLACES:
            tl.store(places + tile * (m + 1) + lane, place, mask=lane < m)
        size += tl.sum(mine, 0)
    tl.store(sizes + tile, size)
    if PLACES:
        tl.store(places + tile * (m + 1) + m, capacity)


def compact(
    used: Tensor,  # (tiles, >= M) bool, last dimension contiguous
    m: int,
    members: Tensor,  # (tiles, capacity) int32: written up to a tile's size; capacity is as many as any tile can have
    sizes: Tensor,  # (tiles,) int32: written
    places: bool = False,
) -> Tensor:  # (tiles, M + 1) int32, or empty
    """The lists of the members in use. `places`: of each member in use, where it is in its tile's list; `capacity` in
    the last column."""
    tiles = len(used)
    found = sizes.new_empty((tiles, m + 1) if places else (0,))
    if tiles:
        compact_kernel[(tiles,)](
            used, members, sizes, found, m, used.stride(0), members.stride(0), PLACES=places, **vars(CompactConfig())
        )
    return found


def empty(
    indices: Tensor,  # (N, K) int32
    vocab: int,
    tile: int,
) -> Lists:
    """Lists to be written, of the shapes that `of_tokens` gives."""
    n, k = indices.shape
    tiles = (n + tile - 1) // tile
    new = indices.new_empty
    return Lists(new((tiles, min(vocab, tile * k))), new((tiles,)), new((n, k)))


def of_tokens(
    indices: Tensor,  # (N, K) int32
    live: Tensor | None,  # (N, K) bool: the entries in use; none: all
    vocab: int,
    tile: int,
    pairs: int,
) -> Lists:
    """The ids in use by each tile of `tile` neighbouring tokens. `pairs`: (tile, id) pairs that are counted at once."""
    lists = empty(indices, vocab, tile)
    lists.members.zero_()
    step = max(1, pairs // vocab)
    for first in range(0, len(lists.sizes), step):
        tiles = slice(first, first + step)
        rows = slice(first * tile, (first + step) * tile)
        members, sizes, columns = (lists.members[tiles], lists.sizes[tiles], lists.columns[rows])
        ids = indices[rows].long()
        if live is not None:
            ids = torch.where(live[rows], ids, vocab)
        n, k = ids.shape
        ids = torch.nn.functional.pad(ids, (0, 0, 0, len(sizes) * tile - n), value=vocab).view(len(sizes), tile * k)
        used = torch.zeros((len(sizes), vocab + 1), dtype=torch.bool, device=ids.device).scatter_(1, ids, True)
        place = compact(used, vocab, members, sizes, places=True)
        columns.copy_(place.gather(1, ids).view(-1, k)[:n])
    return lists


def by_use(
    indices: Tensor,  # (N, K) int32
    vocab: int,
) -> tuple[Tensor, Tensor]:  # order (V,) int32: the ids; places (V,) int32: where in `order` each id stands
    """An order of all ids: by how many tokens use them, in powers of 4, the most first; then by their first token.

    Counts and minima of integers do not depend on the order of execution, and the sort is stable.
    """
    n, k = indices.shape
    ids = indices.reshape(-1).long()
    token = torch.arange(n, dtype=torch.int32, device=ids.device).unsqueeze(1).expand(n, k).reshape(-1)
    count = token.new_zeros(vocab).scatter_add_(0, ids, token.new_ones(1).expand(n * k))
    first = token.new_full((vocab,), n).scatter_reduce_(0, ids, token, "amin")
    magnitude = torch.frexp(count.float()).exponent // 2
    order = (first - magnitude.long() * (n + 1)).argsort(stable=True)
    places = torch.empty_like(order).scatter_(0, order, torch.arange(vocab, device=ids.device))
    return order.int(), places.int()
