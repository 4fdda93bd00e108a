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
from .configs import launch

TRITON_DTYPE = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
# Elements of the [tokens, union] and [tokens, ids] workspaces.
BUDGET = 1 << 27

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
    y,  # (n, U) fp32
    n,
    h,
    capacity,
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
    # Lanes past an end repeat the last row in use and are not stored: no mask in the loop, and nothing foreign is read.
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
    y_tile = y + (tile * BLOCK_N).to(tl.int64) * capacity + first
    at = tl.arange(0, BLOCK_N)[:, None] * capacity + tl.arange(0, BLOCK_U)[None, :]
    tl.store(y_tile + at, acc, mask=(rows[:, None] < n) & (columns[None, :] < size))


@triton.jit(do_not_specialize=["n", "tiles"])
def hidden_gradient_kernel(
    d,  # (n, width), 0 outside the tile's ids; width > a multiple of BLOCK_U that holds U
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


@triton.jit(do_not_specialize=["n", "first"])
def scatter_kernel(
    indices,  # (N, K) int32
    dy,  # (N, K) fp32
    d,  # (N, width), 0: written
    used,  # (tiles, N) bool, false: written
    n,
    k,
    first,
    width,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The part of dloss/dy for ids in first..first + width, dense, and which tiles of BLOCK_V ids each token has.

    Program: one token. Ids are unique within a row; several lanes may write the same `true`.
    """
    row = tl.program_id(0).to(tl.int64)
    for start in range(0, k, BLOCK_K):
        lane = start + tl.arange(0, BLOCK_K)
        v = tl.load(indices + row * k + lane, mask=lane < k, other=-1) - first
        value = tl.load(dy + row * k + lane, mask=lane < k, other=0.0)
        mine = (v >= 0) & (v < width) & (value != 0.0)
        tl.store(d + row * width + v, value.to(d.dtype.element_ty), mask=mine)
        tl.store(used + (v // BLOCK_V).to(tl.int64) * n + row, tl.full((BLOCK_K,), 1, tl.int1), mask=mine)


@triton.jit(do_not_specialize=["n", "rows", "tiles"])
def weight_gradient_kernel(
    d,  # (N, width), width = tiles * BLOCK_V
    x,  # (N, H)
    tokens,  # (tiles, N) int32
    sizes,  # (tiles,) int32
    dw,  # (rows, H): the part of the head's gradient
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
    at = tl.arange(0, BLOCK_V)[:, None] * h + i[None, :]
    tl.store(dw + (tile * BLOCK_V).to(tl.int64) * h + at, acc.to(dw.dtype.element_ty), mask=mask)


def _tokens(capacity: int, vocab: int, tile: int) -> int:
    """Tokens of a chunk, whole tiles: the workspace, and the lists of their tiles at some 20 bytes an id, stay bounded."""
    return max(1, min(BUDGET // (capacity * tile), BUDGET // 8 // vocab)) * tile


def _wide(operands: torch.dtype, *stored: Tensor) -> bool:
    """Whether operands are kept in more bytes than they are multiplied in, so that tiles take more shared memory."""
    return any(x.element_size() > operands.itemsize for x in stored)


def _long(*tensors: Tensor) -> bool:
    """Whether columns lie so far apart (in a transposed head, say) that their offsets need 64 bits."""
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
) -> Tensor:  # (N, K) fp32
    ids = masked_ids(indices, mask, head.vocab)
    y = selected_products(head, hidden, ids, mask)
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
) -> Gradients:
    dy = head.by_y(dz, z)
    need_hidden, need_weight, need_bias = needs
    grad_hidden = hidden_gradient(head, dy, hidden, indices) if need_hidden else None
    if grad_hidden is not None and mask is not None:
        # Their own entries are 0, but 0 times an infinite row of the head that a neighbour uses is not.
        grad_hidden.masked_fill_(~mask.unsqueeze(1), 0)
    if not (need_weight or need_bias):
        return grad_hidden, None, None
    return grad_hidden, *weight_gradient(head, dy, hidden, indices, need_weight, need_bias)


def selected_products(
    head: Head,
    hidden: Tensor,  # (N, H)
    indices: Tensor,  # (N, K) int32
    mask: Tensor | None,  # (N,) bool
) -> Tensor:  # (N, K) fp32: y before bias; 0 at masked tokens
    n, k = indices.shape
    h = hidden.shape[1]
    y = hidden.new_empty((n, k), dtype=torch.float32)
    config = launch("product", head.operands, wide=_wide(head.operands, hidden, head.weight))
    tile = config["BLOCK_N"]
    capacity = min(head.vocab, tile * k)
    live = None if mask is None else mask.unsqueeze(1).expand(n, k)
    step = _tokens(capacity, head.vocab, tile)
    workspace = hidden.new_empty((min(n, step), capacity), dtype=torch.float32)
    for rows in _chunks(n, step):
        x = hidden[rows]
        ids, place = union.of_tokens(indices[rows], None if live is None else live[rows], head.vocab, tile)
        tiles = len(ids.sizes)
        product_kernel[(tiles * triton.cdiv(capacity, config["BLOCK_U"]),)](
            x,
            head.weight,
            ids.members,
            ids.sizes,
            workspace,
            len(x),
            h,
            capacity,
            tiles,
            *x.stride(),
            *head.weight.stride(),
            OPERAND=TRITON_DTYPE[head.operands],
            EVEN_H=h % config["BLOCK_H"] == 0,
            LONG=_long(x, head.weight),
            **config,
        )
        found = workspace[: len(x)].gather(1, place.clamp_max(capacity - 1))
        y[rows] = found if live is None else found.masked_fill(~live[rows], 0)
    return y


def hidden_gradient(
    head: Head,
    dy: Tensor,  # (N, K) fp32 dloss/dy at the ids; entries of 0 cost nothing
    hidden: Tensor,  # (N, H)
    indices: Tensor,  # (N, K) int32
) -> Tensor:  # (N, H), dtype of hidden
    n, k = indices.shape
    h = hidden.shape[1]
    dx = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    operand, precision = gradient_operand(head.operands)
    config = launch("hidden_gradient", operand, precision, wide=_wide(operand, head.weight))
    tile = config["BLOCK_N"]
    capacity = min(head.vocab, tile * k)
    # Rows of D are whole blocks, and one spare column for entries of 0; 16-byte steps, so that loads are wide.
    spare = triton.cdiv(capacity, config["BLOCK_U"]) * config["BLOCK_U"]
    width = spare + 16
    step = _tokens(spare, head.vocab, tile)
    workspace = dy.new_empty((min(n, step), width), dtype=operand)
    for rows in _chunks(n, step):
        part = dx[rows]
        ids, place = union.of_tokens(indices[rows], dy[rows] != 0, head.vocab, tile)
        tiles = len(ids.sizes)
        d = workspace[: len(part)].zero_()
        d.scatter_(1, torch.where(place < capacity, place, spare), dy[rows].to(operand))
        hidden_gradient_kernel[(tiles * triton.cdiv(h, config["BLOCK_H"]),)](
            d,
            head.weight,
            ids.members,
            ids.sizes,
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
            **config,
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
    n, k = indices.shape
    vocab, h = head.weight.shape
    indices, dy = indices.contiguous(), dy.contiguous()
    dw = torch.empty_like(head.weight, memory_format=torch.contiguous_format) if need_weight else None
    db = dy.new_zeros((vocab,)) if need_bias else None
    operand, precision = gradient_operand(head.operands)
    config = launch("weight_gradient", operand, precision, wide=_wide(operand, hidden))
    tile = config["BLOCK_V"]
    step = max(1, BUDGET // max(1, n) // tile) * tile
    workspace = dy.new_empty(n * min(step, triton.cdiv(vocab, tile) * tile), dtype=operand)
    for part in _chunks(vocab, step):
        rows = part.stop - part.start
        tiles = triton.cdiv(rows, tile)
        width = tiles * tile
        d = workspace[: n * width].view(n, width).zero_()
        used = torch.zeros((tiles, n), dtype=torch.bool, device=dy.device)
        if n:
            scatter_kernel[(n,)](indices, dy, d, used, n, k, part.start, width, BLOCK_V=tile, **launch("scatter"))
        if db is not None:
            db[part] = d[:, :rows].sum(0, dtype=torch.float32)
        if dw is None:
            continue
        tokens, _ = union.compact(used, n)
        weight_gradient_kernel[(tiles * triton.cdiv(h, config["BLOCK_H"]),)](
            d,
            hidden,
            tokens.members,
            tokens.sizes,
            dw[part],
            n,
            h,
            width,
            rows,
            tiles,
            *hidden.stride(),
            OPERAND=TRITON_DTYPE[operand],
            PRECISION=precision,
            LONG=_long(hidden),
            **config,
        )
    return dw, db
