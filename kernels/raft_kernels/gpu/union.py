"""Which rows of the head a tile of neighbouring tokens needs, and which tokens a tile of neighbouring ids needs.

The K ids of one token fill no tensor-core tile, but the ids of 128 neighbouring tokens do: their union is at most
128 K ids, 40 % of 128k when no two tokens agree more than by chance (K = 512), a few percent in text. Products run over
the union, in order; what no token of the tile asked for is computed and dropped. Counts stay on the device: programs
beyond a tile's count return at once, so that the work follows the data without a host sync.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Union(NamedTuple):
    members: Tensor  # (tiles, capacity) int32: the members in use by a tile, ascending, then 0
    sizes: Tensor  # (tiles,) int32


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


def of_tokens(
    indices: Tensor,  # (n, K) int32
    live: Tensor | None,  # (n, K) bool; none: all
    vocab: int,
    tile: int,
) -> tuple[Union, Tensor]:  # and (n, K) int64: the column of each entry in its tile's list; `capacity` where not live
    """The ids in use by each tile of `tile` neighbouring tokens."""
    n, k = indices.shape
    tiles = -(-n // tile)
    capacity = min(vocab, tile * k)
    ids = indices.long()
    if live is not None:
        ids = torch.where(live, ids, vocab)
    padded = torch.nn.functional.pad(ids, (0, 0, 0, tiles * tile - n), value=vocab).view(tiles, tile * k)
    used = torch.zeros((tiles, vocab + 1), dtype=torch.bool, device=ids.device).scatter_(1, padded, True)
    union, place = compact(used[:, :vocab], capacity)
    place = torch.nn.functional.pad(place, (0, 1), value=capacity)
    return union, place.gather(1, padded).view(tiles * tile, k)[:n].long()
