"""Reads the K entries of each token from dense workspaces, and writes them there.

Y, the product of a tile of tokens with the union of its ids, holds each token's K entries among others: `pick_columns`
reads them. D is dloss/dy as the dense operand of the gradients' products: it is written only where a product will read
it.

A tile of tokens reads the columns of the union of its ids (hidden_gradient), a tile of ids the rows of the tokens that
have one of its ids (weight_gradient). With V = 128256, K = 512 and ids that agree only by chance each of the two reads
40 % of D, in text less. The rest of the workspace keeps what it held before.

Each program that writes D first writes the zeros of its token, then its entries; a barrier keeps that order.
"""

import triton
import triton.language as tl
from torch import Tensor

from .tiles import PickColumnsConfig, ScatterColumnsConfig, ScatterTilesConfig


@triton.jit
def pick_columns_kernel(
    y,  # (n, width) fp32
    columns,  # (n, K) int32; `capacity` for an entry that has no column: it is read as 0
    mask,  # (n,) bool
    found,  # (n, K) fp32
    k,
    capacity,
    width,
    MASK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The entries of each token. Program: one token."""
    row = tl.program_id(0).to(tl.int64)
    live = True
    if MASK:
        live = tl.load(mask + row) != 0
    for start in range(0, k, BLOCK_K):
        lane = start + tl.arange(0, BLOCK_K)
        column = tl.load(columns + row * k + lane, mask=lane < k, other=capacity)
        value = tl.load(y + row * width + column, mask=(column < capacity) & live, other=0.0)
        tl.store(found + row * k + lane, value, mask=lane < k)


@triton.jit
def scatter_columns_kernel(
    columns,  # (n, K) int32: where each entry is written; `capacity` for an entry that is not
    dy,  # (n, K) fp32
    d,  # (n, width): written up to the tile's size, in whole BLOCK_U
    sizes,  # (tiles,) int32
    k,
    capacity,
    width,
    TILE: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ZEROS: tl.constexpr,
):
    """D of a tile's tokens over the columns of its union. Program: one token."""
    row = tl.program_id(0).to(tl.int64)
    end = tl.cdiv(tl.load(sizes + row // TILE), BLOCK_U) * BLOCK_U
    for start in range(0, end, ZEROS):
        column = start + tl.arange(0, ZEROS)
        tl.store(d + row * width + column, tl.zeros((ZEROS,), d.dtype.element_ty), mask=column < end)
    tl.debug_barrier()
    for start in range(0, k, BLOCK_K):
        lane = start + tl.arange(0, BLOCK_K)
        column = tl.load(columns + row * k + lane, mask=lane < k, other=capacity)
        value = tl.load(dy + row * k + lane, mask=lane < k, other=0.0)
        tl.store(d + row * width + column, value.to(d.dtype.element_ty), mask=column < capacity)


@triton.jit(do_not_specialize=["n", "first"])
def scatter_tiles_kernel(
    places,  # (N, K) int32
    dy,  # (N, K) fp32
    d,  # (N, width): written in the tiles that the token has
    used,  # (tiles, N) bool, false: written
    n,
    k,
    first,
    width,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """D of the places first..first + width, and which tiles of BLOCK_V places each token has. Program: one token.

    Places are unique within a row; several lanes may write the same zeros and the same `true`.
    """
    row = tl.program_id(0).to(tl.int64)
    for start in range(0, k, BLOCK_K):
        lane = start + tl.arange(0, BLOCK_K)
        v = tl.load(places + row * k + lane, mask=lane < k, other=-1) - first
        value = tl.load(dy + row * k + lane, mask=lane < k, other=0.0)
        mine = (v >= 0) & (v < width) & (value != 0.0)
        tile = v // BLOCK_V
        tl.store(used + tile.to(tl.int64) * n + row, tl.full((BLOCK_K,), 1, tl.int1), mask=mine)
        at = (tile * BLOCK_V)[:, None] + tl.arange(0, BLOCK_V)[None, :]
        zeros = tl.zeros((BLOCK_K, BLOCK_V), d.dtype.element_ty)
        tl.store(d + row * width + at, zeros, mask=tl.broadcast_to(mine[:, None], (BLOCK_K, BLOCK_V)))
    tl.debug_barrier()
    for start in range(0, k, BLOCK_K):
        lane = start + tl.arange(0, BLOCK_K)
        v = tl.load(places + row * k + lane, mask=lane < k, other=-1) - first
        value = tl.load(dy + row * k + lane, mask=lane < k, other=0.0)
        mine = (v >= 0) & (v < width) & (value != 0.0)
        tl.store(d + row * width + v, value.to(d.dtype.element_ty), mask=mine)


def pick_columns(
    y: Tensor,  # (n, width) fp32
    columns: Tensor,  # (n, K) int32 of union.Lists
    mask: Tensor | None,  # (n,) bool
    found: Tensor,  # (n, K) fp32: written
    capacity: int,
) -> None:
    n, k = columns.shape
    if n:
        config = vars(PickColumnsConfig())
        given = columns if mask is None else mask
        pick_columns_kernel[(n,)](y, columns, given, found, k, capacity, y.stride(0), MASK=mask is not None, **config)


def scatter_columns(
    columns: Tensor,  # (n, K) int32 of union.Lists
    dy: Tensor,  # (n, K) fp32
    sizes: Tensor,  # (tiles,) int32
    d: Tensor,  # (n, width): written
    capacity: int,
    tile: int,
    block_u: int,
) -> None:
    n, k = columns.shape
    if n:
        config = vars(ScatterColumnsConfig())
        scatter_columns_kernel[(n,)](
            columns, dy, d, sizes, k, capacity, d.stride(0), TILE=tile, BLOCK_U=block_u, **config
        )


def scatter_tiles(
    places: Tensor,  # (N, K) int32: where in the order of the ids (union.by_use) each entry stands
    dy: Tensor,  # (N, K) fp32
    d: Tensor,  # (N, tiles * tile): written
    used: Tensor,  # (tiles, N) bool, false: written
    first: int,
    tile: int,
) -> None:
    n, k = places.shape
    if n:
        config = vars(ScatterTilesConfig())
        scatter_tiles_kernel[(n,)](places, dy, d, used, n, k, first, d.stride(0), BLOCK_V=tile, **config)
