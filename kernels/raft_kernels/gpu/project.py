"""hidden @ weight.T and the maxima of groups of neighbouring ids, in one pass.

    z_nv = logit of the head, fp32;  M_ng = max over the G ids of group g of the order key of z (select.py)
A persistent kernel: as many programs as the chip has multiprocessors take tiles of the product one after the other, so
that loads of the next tile run while this one is stored. Operands are loaded through tensor descriptors, by the tensor
memory accelerator (TMA) of sm_90 and later.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..head import Head
from . import select
from .select import order_key
from .student import as_operand
from .tiles import ProjectConfig, has_fused_product, tiles_for


@triton.jit(do_not_specialize=["n"])
def project_kernel(
    x,  # descriptor of (n, H)
    w,  # descriptor of (V, H)
    bias,  # (V,)
    z,  # (n, V) fp32
    maxima,  # (n, groups) int32: bits of the uint32 order key
    n,
    vocab,
    h,
    groups,
    stride_z,
    logit_scale,
    BIAS: tl.constexpr,
    G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """Program: every PROGRAMS-th tile; the tiles of all tokens for one block of ids follow one another."""
    row_tiles = tl.cdiv(n, BLOCK_N)
    tiles = row_tiles * tl.cdiv(vocab, BLOCK_V)
    for tile in tl.range(tl.program_id(0), tiles, PROGRAMS, flatten=True):
        first_row = (tile % row_tiles) * BLOCK_N
        first_id = (tile // row_tiles) * BLOCK_V
        acc = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
        for start in range(0, h, BLOCK_H):
            a, b = x.load([first_row, start]), w.load([first_id, start])
            acc = tl.dot(as_operand(a, a.dtype), as_operand(b, b.dtype).T, acc)
        # Two halves: the rearrangement of sums for the store takes shared memory, which the operands nearly fill.
        left, right = tl.split(tl.permute(tl.reshape(acc, (BLOCK_N, 2, BLOCK_V // 2)), (0, 2, 1)))
        rows = first_row + tl.arange(0, BLOCK_N)
        for half in tl.static_range(2):
            y = left if half == 0 else right
            ids = first_id + half * (BLOCK_V // 2) + tl.arange(0, BLOCK_V // 2)
            real = (ids < vocab)[None, :]
            if BIAS:
                y += tl.load(bias + ids, mask=ids < vocab, other=0.0).to(tl.float32)[None, :]
            y = y * logit_scale
            at = tl.arange(0, BLOCK_N)[:, None] * stride_z + ids[None, :]
            tl.store(z + first_row.to(tl.int64) * stride_z + at, y, mask=(rows < n)[:, None] & real)
            u = tl.where(real, order_key(y), 0)
            top = tl.max(tl.reshape(u, (BLOCK_N, BLOCK_V // 2 // G, G)), 2)
            group = (first_id + half * (BLOCK_V // 2)) // G + tl.arange(0, BLOCK_V // 2 // G)
            at = tl.arange(0, BLOCK_N)[:, None] * groups + group[None, :]
            bits = top.to(tl.int32, bitcast=True)
            mask = (rows < n)[:, None] & (group < groups)[None, :]
            tl.store(maxima + first_row.to(tl.int64) * groups + at, bits, mask=mask)


def suits(head: Head, hidden: Tensor, k: int, log_partition_at: float | None) -> bool:
    """Whether this kernel is used: on a chip where it is faster, for half-precision operands of one dtype that are
    laid out as tensor descriptors need them, if there are groups to take maxima of, and without a soft-cap (Triton has
    no tanh that is exact for small logits) or a log-partition (with which the kernel spills registers)."""
    half = head.operands in (torch.bfloat16, torch.float16)
    if not half or not has_fused_product() or log_partition_at is not None or head.softcap is not None:
        return False
    g = select.group_size(head.vocab, k)
    aligned = all(
        x.dtype == head.operands
        and x.stride(1) == 1
        and x.stride(0) % 8 == 0
        and x.stride(0) >= x.shape[1]
        and x.data_ptr() % 16 == 0
        for x in (hidden, head.weight)
    )
    return aligned and 1 < g <= 64 and select.suits(head.vocab, k)


def logits_and_maxima(
    head: Head,
    x: Tensor,  # (n, H)
    g: int,
    z: Tensor,  # (n, V) fp32: written
) -> Tensor:  # (n, groups) int32
    n, h = x.shape
    groups = -(-head.vocab // g)
    maxima = z.new_empty((n, groups), dtype=torch.int32)
    config = tiles_for(ProjectConfig, head.operands)
    tiles = triton.cdiv(n, config.BLOCK_N) * triton.cdiv(head.vocab, config.BLOCK_V)
    multiprocessors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 4
    programs = min(multiprocessors, tiles)
    if n:
        project_kernel[(programs,)](
            TensorDescriptor.from_tensor(x, [config.BLOCK_N, config.BLOCK_H]),
            TensorDescriptor.from_tensor(head.weight, [config.BLOCK_V, config.BLOCK_H]),
            head.bias if head.bias is not None else z,
            z,
            maxima,
            n,
            head.vocab,
            h,
            groups,
            z.stride(0),
            head.logit_scale,
            BIAS=head.bias is not None,
            G=g,
            PROGRAMS=programs,
            **vars(config),
        )
    return maxima
