"""Student logits at the teacher's ids, and their gradients, by tensor-core products over unions (union.py).

    y_nk = <hidden_n, weight_v>, v = ids_nk         Y = hidden_tile @ weight[union].T, then the K entries of each row
    dhidden_tile = D @ weight[union]                D: dloss/dy scattered to the columns of the union
    dweight_tile = D.T @ hidden[tokens]             D: dloss/dy of the tokens that have an id of the tile
Each element of a result is summed by one program in one order and written once: deterministic, and dweight needs no
fp32 copy of the head. Sums are fp32. D has the dtype of the operands: bf16 for bf16, and fp32 (tf32 products, which
keep all bits of fp16) for fp16, whose gradients would underflow.

Offsets inside a tile are 32-bit: 64-bit ones of a whole tile would take the registers that its sums need. Sizes that
change from batch to batch are not specialised: a training run compiles each kernel once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import INTERPRETED
from ..head import Gradients, Head, masked_ids
from . import union
from .scatter import pick_columns, scatter_columns, scatter_tiles
from .tiles import HiddenGradientConfig, StudentProductConfig, WeightGradientConfig, tiles_for

TRITON_DTYPE = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
# The interpreter holds bf16 as integers and multiplies those; bf16 products in fp32 are the same numbers.
WIDEN = tl.constexpr(INTERPRETED)


@triton.jit
def as_operand(x, OPERAND: tl.constexpr):
    x = x.to(OPERAND)
    return x.to(tl.float32) if WIDEN else x


@triton.jit(do_not_specialize=["n", "tiles"])
def product_kernel(
    x,  # (n, H)
    w,  # (V, H)
    ids,  # (tiles, U) int32
    sizes,  # (tiles,) int32
    y,  # (n, width) fp32, width a multiple of BLOCK_U: columns beyond the tile's ids are written and never read
    n,
    h,
    capacity,
    width,
    tiles,
    stride_xn,
    stride_xh,
    stride_wv,
    stride_wh,
    OPERAND: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_H: tl.constexpr,
    EVEN_H: tl.constexpr,
    LONG: tl.constexpr,
):
    """Y = X_tile @ W[ids of the tile].T. Program: one tile of tokens, BLOCK_U of its ids.

    Programs that run at the same time take the same part of the ids for neighbouring tiles, so that rows of the head
    come from the L2 cache.
    """
    tile = tl.program_id(0) % tiles
    first = (tl.program_id(0) // tiles) * BLOCK_U
    size = tl.load(sizes + tile)
    if first >= size:
        return
    rows = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = first + tl.arange(0, BLOCK_U)
    # Lanes past an end repeat the last row in use, so that the loop needs no mask and reads nothing out of bounds. A
    # mask of columns in the store would split it: 128 single stores a thread instead of 32 of 16 bytes.
    v = tl.load(ids + tile.to(tl.int64) * capacity + tl.minimum(columns, size - 1)).to(tl.int64)
    x_rows = x + tl.minimum(rows, n - 1).to(tl.int64)[:, None] * stride_xn
    w_rows = w + v[:, None] * stride_wv
    acc = tl.zeros((BLOCK_N, BLOCK_U), tl.float32)
    for start in range(0, h, BLOCK_H):
        i = start + tl.arange(0, BLOCK_H)
        if LONG:
            i = i.to(tl.int64)
        if EVEN_H:
            a = tl.load(x_rows + i[None, :] * stride_xh)
            b = tl.load(w_rows + i[None, :] * stride_wh)
        else:
            a = tl.load(x_rows + i[None, :] * stride_xh, mask=i[None, :] < h, other=0.0)
            b = tl.load(w_rows + i[None, :] * stride_wh, mask=i[None, :] < h, other=0.0)
        acc = tl.dot(as_operand(a, OPERAND), tl.trans(as_operand(b, OPERAND)), acc, input_precision="ieee")
    y_tile = y + (tile * BLOCK_N).to(tl.int64) * width + first
    at = tl.arange(0, BLOCK_N)[:, None] * width
    inside = rows[:, None] < n
    if BLOCK_U >= 256:
        # Two halves: the rearrangement into 16-byte stores, through shared memory, then spills nothing on sm_100.
        left, right = tl.split(tl.permute(tl.reshape(acc, (BLOCK_N, 2, BLOCK_U // 2)), (0, 2, 1)))
        half = tl.arange(0, BLOCK_U // 2)[None, :]
        tl.store(y_tile + at + half, left, mask=inside)
        tl.store(y_tile + at + BLOCK_U // 2 + half, right, mask=inside)
    else:
        tl.store(y_tile + at + tl.arange(0, BLOCK_U)[None, :], acc, mask=inside)


@triton.jit(do_not_specialize=["n", "tiles"])
def hidden_gradient_kernel(
    d,  # (n, width), width a multiple of BLOCK_U; of a row, the blocks that hold the tile's ids are read
    w,  # (V, H)
    ids,  # (tiles, U) int32
    sizes,  # (tiles,) int32
    dx,  # (n, H)
    n,
    h,
    capacity,
    width,
    tiles,
    stride_wv,
    stride_wh,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_H: tl.constexpr,
    LONG: tl.constexpr,
):
    """dX_tile = D_tile @ W[ids of the tile]. Program: one tile of tokens, BLOCK_H columns."""
    tile = tl.program_id(0) % tiles
    i = (tl.program_id(0) // tiles) * BLOCK_H + tl.arange(0, BLOCK_H)
    size = tl.load(sizes + tile)
    rows = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    d_rows = d + tl.minimum(rows, n - 1).to(tl.int64)[:, None] * width
    ids_tile = ids + tile.to(tl.int64) * capacity
    acc = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
    for start in range(0, size, BLOCK_U):
        columns = start + tl.arange(0, BLOCK_U)
        a = tl.load(d_rows + columns[None, :])
        v = tl.load(ids_tile + tl.minimum(columns, size - 1)).to(tl.int64)
        j = i.to(tl.int64) if LONG else i
        b = tl.load(w + v[:, None] * stride_wv + j[None, :] * stride_wh, mask=i[None, :] < h, other=0.0)
        acc = tl.dot(as_operand(a, OPERAND), as_operand(b, OPERAND), acc, input_precision=PRECISION)
    mask = (rows[:, None] < n) & (i[None, :] < h)
    at = tl.arange(0, BLOCK_N)[:, None] * h + i[None, :]
    tl.store(dx + (tile * BLOCK_N).to(tl.int64) * h + at, acc.to(dx.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n", "rows", "tiles"])
def weight_gradient_kernel(
    d,  # (N, width), width = tiles * BLOCK_V; of a tile, the rows of its tokens are read
    x,  # (N, H)
    tokens,  # (tiles, N) int32
    sizes,  # (tiles,) int32
    order,  # (rows,) int32: the ids of the tiles, one after the other
    dw,  # (V, H): the rows of these ids are written
    n,
    h,
    width,
    rows,
    tiles,
    stride_xn,
    stride_xh,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    GROUP_H: tl.constexpr,
    LONG: tl.constexpr,
):
    """dW_tile = D[tokens of the tile].T @ X[tokens of the tile]. Program: BLOCK_V ids, BLOCK_H columns.

    GROUP_H blocks of columns of one tile follow one another: they read the same part of D, from the L2 cache.
    """
    group = tl.program_id(0) // (GROUP_H * tiles)
    members = tl.minimum(tl.cdiv(h, BLOCK_H) - group * GROUP_H, GROUP_H)
    local = tl.program_id(0) % (GROUP_H * tiles)
    tile = local // members
    i = (group * GROUP_H + local % members) * BLOCK_H + tl.arange(0, BLOCK_H)
    size = tl.load(sizes + tile)
    v = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    tokens_tile = tokens + tile.to(tl.int64) * n
    acc = tl.zeros((BLOCK_V, BLOCK_H), tl.float32)
    for start in range(0, size, BLOCK_N):
        lane = start + tl.arange(0, BLOCK_N)
        row = tl.load(tokens_tile + tl.minimum(lane, size - 1)).to(tl.int64)
        a = tl.load(d + row[:, None] * width + v[None, :], mask=lane[:, None] < size, other=0.0)
        j = i.to(tl.int64) if LONG else i
        b = tl.load(x + row[:, None] * stride_xn + j[None, :] * stride_xh, mask=i[None, :] < h, other=0.0)
        acc = tl.dot(tl.trans(as_operand(a, OPERAND)), as_operand(b, OPERAND), acc, input_precision=PRECISION)
    mask = (v[:, None] < rows) & (i[None, :] < h)
    ids = tl.load(order + v, mask=v < rows, other=0).to(tl.int64)
    tl.store(dw + ids[:, None] * h + i[None, :], acc.to(dw.dtype.element_ty), mask=mask)


def _tokens(width: int, tile: int, budget: int) -> int:
    """Tokens of a chunk: whole tiles in a workspace of at most `budget` elements. Four tiles or a multiple, where they
    fit: every chunk's part of the lists then starts at 16 bytes, and Triton compiles the kernels once."""
    tiles = max(1, budget // (width * tile))
    return (tiles // 4 * 4 or tiles) * tile


def _wide(operands: torch.dtype, *stored: Tensor) -> bool:
    """Whether operands are stored in a wider dtype than they are multiplied in: tiles take more shared memory then."""
    return any(x.element_size() > operands.itemsize for x in stored)


def _long(*tensors: Tensor) -> bool:
    """Whether columns lie so far apart (as in a transposed head) that their offsets need 64 bits."""
    return any(x.shape[1] * x.stride(1) >= 2**31 for x in tensors)


def _chunks(n: int, step: int) -> list[slice]:
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


def gradient_operand(operands: torch.dtype) -> tuple[torch.dtype, str]:
    """dtype of D and of the rows that it multiplies, and the precision of their product."""
    if operands == torch.float16:
        return torch.float32, "tf32"
    return operands, "ieee"


def forward(
    head: Head,
    hidden: Tensor,  # (N, H)
    indices: Tensor,  # (N, K) int32
    mask: Tensor | None,  # (N,) bool
    _rest_at: None,
    lists: list[Tensor],  # the fields of union.Lists
) -> Tensor:  # (N, K) fp32
    ids = masked_ids(indices, mask, head.vocab)
    y = products_at_ids(head, hidden, union.Lists(*lists), mask)
    return head.transform_(y if head.bias is None else y.add_(head.bias[ids]))


def backward(
    head: Head,
    dz: Tensor,  # (N, K) fp32
    z: Tensor | None,  # (N, K) fp32 with a soft-cap
    hidden: Tensor,  # (N, H)
    indices: Tensor,  # (N, K) int32
    mask: Tensor | None,  # (N,) bool
    needs: list[bool],  # hidden, weight, bias
    _rest_at: None,
    lists: list[Tensor],  # as in forward; empty: lists are made of the entries of dz that are not 0
) -> Gradients:
    dy = head.by_y(dz, z)
    need_hidden, need_weight, need_bias = needs
    kept = union.Lists(*lists) if lists else None
    grad_hidden = hidden_gradient(head, dy, hidden, indices, kept) if need_hidden else None
    if grad_hidden is not None and mask is not None:
        # Entries of masked tokens are 0, but 0 times an infinite row of the head that a neighbour uses is NaN.
        grad_hidden.masked_fill_(~mask.unsqueeze(1), 0)
    if not (need_weight or need_bias):
        return grad_hidden, None, None
    ids = masked_ids(indices, mask, head.vocab)
    return grad_hidden, *weight_gradient(head, dy, hidden, ids, need_weight, need_bias)


def token_tile(operands: torch.dtype, wide: bool) -> int:
    """How many neighbouring tokens share a list of ids in the forward product."""
    return tiles_for(StudentProductConfig, operands, wide=wide).BLOCK_N


def products_at_ids(
    head: Head,
    hidden: Tensor,  # (N, H)
    lists: union.Lists,
    mask: Tensor | None,  # (N,) bool
) -> Tensor:  # (N, K) fp32: y before bias; 0 at masked tokens
    n, k = lists.columns.shape
    h = hidden.shape[1]
    y = hidden.new_empty((n, k), dtype=torch.float32)
    config = tiles_for(StudentProductConfig, head.operands, wide=_wide(head.operands, hidden, head.weight))
    tile, block = config.BLOCK_N, config.BLOCK_U
    capacity = lists.members.shape[1]
    width = triton.cdiv(capacity, block) * block
    step = _tokens(width, tile, head.budgets.union_workspace)
    workspace = hidden.new_empty((min(n, step), width), dtype=torch.float32)
    for rows in _chunks(n, step):
        x = hidden[rows]
        members, sizes = _of_chunk(lists, rows, tile)
        tiles = len(sizes)
        product_kernel[(tiles * (width // block),)](
            x,
            head.weight,
            members,
            sizes,
            workspace,
            len(x),
            h,
            capacity,
            width,
            tiles,
            *x.stride(),
            *head.weight.stride(),
            OPERAND=TRITON_DTYPE[head.operands],
            EVEN_H=h % config.BLOCK_H == 0,
            LONG=_long(x, head.weight),
            **vars(config),
        )
        pick_columns(workspace, lists.columns[rows], None if mask is None else mask[rows], y[rows], capacity)
    return y


def _of_chunk(lists: union.Lists, rows: slice, tile: int) -> tuple[Tensor, Tensor]:
    """Members and sizes of the tiles of a chunk of tokens."""
    tiles = slice(rows.start // tile, triton.cdiv(rows.stop, tile))
    return lists.members[tiles], lists.sizes[tiles]


def hidden_gradient(
    head: Head,
    dy: Tensor,  # (N, K) fp32 dloss/dy at the ids
    hidden: Tensor,  # (N, H)
    indices: Tensor,  # (N, K) int32
    lists: union.Lists | None,  # of the forward pass; None: lists are made of the entries of dy that are not 0
) -> Tensor:  # (N, H), dtype of hidden
    n, h = hidden.shape
    dx = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    operand, precision = gradient_operand(head.operands)
    config = tiles_for(HiddenGradientConfig, operand, precision, wide=_wide(operand, head.weight))
    tile, block = config.BLOCK_N, config.BLOCK_U
    if lists is None or tile != token_tile(head.operands, _wide(head.operands, hidden, head.weight)):
        lists = union.of_tokens(indices, dy != 0, head.vocab, tile, head.budgets.union_pairs)
    capacity = lists.members.shape[1]
    width = triton.cdiv(capacity, block) * block
    step = _tokens(width, tile, head.budgets.union_workspace)
    dy = dy.contiguous()
    workspace = dy.new_empty((min(n, step), width), dtype=operand)
    for rows in _chunks(n, step):
        part = dx[rows]
        members, sizes = _of_chunk(lists, rows, tile)
        tiles = len(sizes)
        d = workspace[: len(part)]
        scatter_columns(lists.columns[rows], dy[rows], sizes, d, capacity, tile, block)
        hidden_gradient_kernel[(tiles * triton.cdiv(h, config.BLOCK_H),)](
            d,
            head.weight,
            members,
            sizes,
            part,
            len(part),
            h,
            capacity,
            width,
            tiles,
            *head.weight.stride(),
            OPERAND=TRITON_DTYPE[operand],
            PRECISION=precision,
            LONG=_long(head.weight),
            **vars(config),
        )
    return dx


def weight_gradient(
    head: Head,
    dy: Tensor,  # (N, K) fp32 dloss/dy at the ids; entries of 0 cost nothing
    hidden: Tensor,  # (N, H)
    indices: Tensor,  # (N, K) int32
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor | None, Tensor | None]:  # (V, H), dtype of the head; (V,) fp32
    n = len(indices)
    vocab, h = head.weight.shape
    indices, dy = indices.contiguous(), dy.contiguous()
    dw = torch.empty_like(head.weight, memory_format=torch.contiguous_format) if need_weight else None
    db = dy.new_zeros((vocab,)) if need_bias else None
    operand, precision = gradient_operand(head.operands)
    config = tiles_for(WeightGradientConfig, operand, precision, wide=_wide(operand, hidden))
    tile = config.BLOCK_V
    order, places = union.by_use(indices, vocab)
    places = places[indices]
    step = max(1, head.budgets.union_workspace // max(1, n) // tile)  # tiles at a time
    most = min(step, triton.cdiv(vocab, tile))
    members, sizes = order.new_empty((most, n)), order.new_empty((most,))
    workspace = dy.new_empty(n * most * tile, dtype=operand)
    for part in _chunks(vocab, step * tile):
        rows = part.stop - part.start
        tiles = triton.cdiv(rows, tile)
        width = tiles * tile
        d = workspace[: n * width].view(n, width)
        if db is not None:
            d.zero_()  # the sum below reads all of D; few heads have a bias
        used = torch.zeros((tiles, n), dtype=torch.bool, device=dy.device)
        scatter_tiles(places, dy, d, used, part.start, tile)
        if db is not None:
            db[order[part]] = d[:, :rows].sum(0, dtype=torch.float32)
        if dw is None:
            continue
        union.compact(used, n, members, sizes)
        weight_gradient_kernel[(tiles * triton.cdiv(h, config.BLOCK_H),)](
            d,
            hidden,
            members,
            sizes,
            order[part],
            dw,
            n,
            h,
            width,
            rows,
            tiles,
            *hidden.stride(),
            OPERAND=TRITON_DTYPE[operand],
            PRECISION=precision,
            LONG=_long(hidden),
            **vars(config),
        )
    return dw, db
