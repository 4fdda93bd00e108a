"""Which rows of the head a tile of neighbouring tokens needs, and which tokens a tile of neighbouring ids needs.

The K ids of one token fill no tensor-core tile, but the ids of 128 neighbouring tokens do: their union is at most
128 K ids, 40 % of 128k when no two tokens agree more than by chance (K = 512), a few percent in text. Products run over
the union, in order; what no token of the tile asked for is computed and dropped. Counts stay on the device: programs
beyond a tile's count return at once, so that the work follows the data without a host sync.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# (tile, id) pairs that are counted at once: lists are built in some 20 bytes a pair.
BUDGET = 1 << 24


class Union(NamedTuple):
    members: Tensor  # (tiles, capacity) int32: the members in use by a tile, ascending, then 0
    sizes: Tensor  # (tiles,) int32


class Lists(NamedTuple):
    """The ids in use by each tile of neighbouring tokens, and where each entry of a token is in its tile's list."""

    members: Tensor  # (tiles, capacity) int32, as in Union
    sizes: Tensor  # (tiles,) int32
    columns: Tensor  # (N, K) int32; `capacity` where an entry is not in use


def compact(
    used: Tensor,  # (tiles, M) bool
    capacity: int,
) -> tuple[Union, Tensor]:  # and (tiles, M) int32: the place of each member in its tile's list, of those in use
    """The lists of members in use. `capacity` is as many as any tile can have."""
    tiles, m = used.shape
    # One scan over all tiles fills a GPU; a scan per row would use as many multiprocessors as there are tiles.
    running = used.reshape(-1).cumsum(0, dtype=torch.int32).view(tiles, m)
    rank = running - torch.nn.functional.pad(running[:-1, -1:], (0, 0, 1, 0)) if tiles and m else running
    # What is not in use goes to a spare column, which is cut off.
    target = torch.where(used, rank - 1, capacity).long()
    members = rank.new_zeros((tiles, capacity + 1))
    members.scatter_(1, target, torch.arange(m, dtype=torch.int32, device=used.device).expand(tiles, m))
    sizes = rank[:, -1].contiguous() if m else rank.new_zeros(tiles)
    return Union(members[:, :capacity].contiguous(), sizes), rank - 1


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
) -> Lists:
    """The ids in use by each tile of `tile` neighbouring tokens."""
    lists = empty(indices, vocab, tile)
    capacity = lists.members.shape[1]
    step = max(1, BUDGET // vocab)
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
        found, place = compact(used[:, :vocab], capacity)
        place = torch.nn.functional.pad(place, (0, 1), value=capacity)
        members.copy_(found.members)
        sizes.copy_(found.sizes)
        columns.copy_(place.gather(1, ids).view(-1, k)[:n])
    return lists
