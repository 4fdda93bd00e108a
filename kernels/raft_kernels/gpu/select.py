"""Exact top-K of rows of logits, ties to the lowest id, and logsumexp, without sorting and without a host sync.

    u = an order-preserving uint32 of a logit;  M_g = max of u over the G neighbouring ids of group g
    1. Only the K groups with the largest M (ties to the lowest g) can hold one of the K largest logits: see
       raft_kernels.select.select_blocked for the proof.
    2. The K-th largest of M, and then of the K * G candidates, is found by bisection over the 32 bits of u: a program
       holds them in registers and counts 32 times.
A row is read once for M (or not at all, if project.py computed M), and then K * G of its entries: 1/16 of a row of
128k ids at K = 512. No atomics: positions are prefix sums, so results do not depend on any order of execution.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..select import select_blocked
from .tiles import CandidatesConfig, ChooseConfig, GroupMaximaConfig

# Entries that one program holds. Rows of more groups or candidates are selected by torch operations: that takes a k of
# several thousand.
MAX_LANES = 32768


def group_size(vocab: int, k: int) -> int:
    """G: the power of two that makes the larger of both rounds, over groups and over candidates, smallest."""
    sizes = [1 << e for e in range(1, 8)]
    best = min(sizes, key=lambda g: max(triton.next_power_of_2(-(-vocab // g)), triton.next_power_of_2(k) * g))
    return best if -(-vocab // best) > k else 1


@triton.jit
def order_key(x):
    """uint32 that orders as x does: NaN counts as +inf, -0 equals 0. Never 0, which is left for padding."""
    x = tl.where(x != x, float("inf"), x)  # noqa: PLR0124
    x = tl.where(x == 0.0, 0.0, x)
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) | -2147483648)).to(tl.uint32, bitcast=True)


@triton.jit
def group_maxima_kernel(
    z,  # (n, V) fp32
    maxima,  # (n, groups) int32: bits of the uint32 order key
    partial,  # (n, blocks) fp32: logsumexp of z / T over the ids of a block
    stride_z,
    vocab,
    groups,
    blocks,
    inverse_temperature,
    G: tl.constexpr,
    BLOCK_G: tl.constexpr,
    MAXIMA: tl.constexpr,
    PARTITION: tl.constexpr,
):
    """One pass over the logits. Program: BLOCK_G groups of one row."""
    row = tl.program_id(0).to(tl.int64) // blocks
    block = tl.program_id(0) % blocks
    group = block * BLOCK_G + tl.arange(0, BLOCK_G)
    ids = group[:, None] * G + tl.arange(0, G)[None, :]
    inside = ids < vocab
    x = tl.load(z + row * stride_z + ids, mask=inside, other=-float("inf"))
    if MAXIMA:
        u = tl.where(inside, order_key(x), 0)
        tl.store(maxima + row * groups + group, tl.max(u, 1).to(tl.int32, bitcast=True), mask=group < groups)
    if PARTITION:
        x = x * inverse_temperature
        top = tl.max(tl.max(x, 1), 0)
        shift = tl.where(tl.abs(top) == float("inf"), 0.0, top)
        total = tl.sum(tl.sum(tl.exp(x - shift), 1), 0)
        tl.store(partial + row * blocks + block, tl.log(total) + shift)


@triton.jit
def choose_kernel(
    keys,  # (n, M) int32: bits of uint32 order keys, at least k of them
    chosen,  # (n, K) int32: the columns of keys; with FINAL the ids
    z,  # (n, V) fp32, of FINAL
    groups,  # (n, K) int32, of FINAL: keys are the G ids of each of these groups
    logits,  # (n, K) fp32, of FINAL
    m,
    k,
    stride_z,
    G: tl.constexpr,
    FINAL: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The k largest keys, of equal ones the first, ascending. Program: one row."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    u = tl.load(keys + row * m + lane, mask=lane < m, other=0).to(tl.uint32, bitcast=True)
    threshold = tl.zeros((), tl.uint32)
    bit = tl.full((), 1 << 31, tl.uint32)
    found = tl.full((), 0, tl.int32)
    # In real rows a threshold with exactly k entries is mostly found after half of the bits.
    while (bit != 0) & (found != k):
        raised = threshold | bit
        count = tl.sum((u >= raised).to(tl.int32), 0)
        threshold = tl.where(count >= k, raised, threshold)
        found = tl.where(count >= k, count, found)
        bit = bit >> 1
    room = k - tl.sum((u > threshold).to(tl.int32), 0)
    # Keys are read again block by block: prefix sums of a whole row would not fit the registers.
    above = tl.full((), 0, tl.int32)
    equal = tl.full((), 0, tl.int32)
    for start in range(0, LANES, BLOCK):
        column = start + tl.arange(0, BLOCK)
        part = tl.load(keys + row * m + column, mask=column < m, other=0).to(tl.uint32, bitcast=True)
        # One prefix sum for both: entries above the threshold in the low half, equal ones in the high half.
        step = (part > threshold).to(tl.int32) + ((part == threshold).to(tl.int32) << 16)
        running = tl.cumsum(step, 0)
        rank = equal + (running >> 16)
        keep = (part > threshold) | ((part == threshold) & (rank <= room))
        place = above + (running & 0xFFFF) + tl.minimum(rank, room) - 1
        if FINAL:
            if G > 1:
                column = tl.load(groups + row * k + column // G, mask=keep, other=0) * G + column % G
            tl.store(logits + row * k + place, tl.load(z + row * stride_z + column, mask=keep, other=0.0), mask=keep)
        tl.store(chosen + row * k + place, column, mask=keep)
        total = tl.sum(step, 0)
        above += total & 0xFFFF
        equal += total >> 16


@triton.jit
def candidates_kernel(
    z,  # (n, V) fp32
    groups,  # (n, K) int32
    keys,  # (n, K * G) int32: bits of the uint32 order key
    stride_z,
    vocab,
    k,
    blocks,
    G: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The entries of the chosen groups. Program: BLOCK_K groups of one row."""
    row = tl.program_id(0).to(tl.int64) // blocks
    lane = (tl.program_id(0) % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
    group = tl.load(groups + row * k + lane, mask=lane < k, other=0)
    ids = group[:, None] * G + tl.arange(0, G)[None, :]
    inside = ids < vocab
    u = tl.where(inside, order_key(tl.load(z + row * stride_z + ids, mask=inside, other=0.0)), 0)
    at = lane[:, None] * G + tl.arange(0, G)[None, :]
    tl.store(keys + row * (k * G) + at, u.to(tl.int32, bitcast=True), mask=(lane < k)[:, None])


def suits(vocab: int, k: int) -> bool:
    """Whether both rounds fit the lanes of a program."""
    g = group_size(vocab, k)
    return max(-(-vocab // g), k * g if g > 1 else 0) <= MAX_LANES


def group_maxima(
    z: Tensor,  # (n, >= vocab) fp32, last dimension contiguous
    vocab: int,
    g: int,
    log_partition_at: float | None = None,
    maxima: bool = True,
) -> tuple[Tensor, Tensor | None]:  # (n, groups) int32, and the log-partition (n,)
    n, groups = z.shape[0], -(-vocab // g)
    config = GroupMaximaConfig()
    block = max(1, config.ELEMENTS // g)
    blocks = triton.cdiv(groups, block)
    keys = z.new_empty((n, groups if maxima else 0), dtype=torch.int32)
    partial = z.new_empty((n, blocks if log_partition_at is not None else 0))
    if n:
        group_maxima_kernel[(n * blocks,)](
            z,
            keys,
            partial,
            z.stride(0),
            vocab,
            groups,
            blocks,
            1.0 / (log_partition_at or 1.0),
            G=g,
            BLOCK_G=block,
            MAXIMA=maxima,
            PARTITION=log_partition_at is not None,
            num_warps=config.num_warps,
        )
    return keys, None if log_partition_at is None else torch.logsumexp(partial, -1)


def choose(
    z: Tensor,  # (n, >= vocab) fp32, last dimension contiguous
    maxima: Tensor,  # (n, groups) int32
    vocab: int,
    g: int,
    ids: Tensor,  # (n, k) int32: written, the ids of the k largest, ascending
    logits: Tensor,  # (n, k) fp32: written
) -> None:
    n, k = ids.shape
    if not n:
        return
    groups, keys = ids, maxima
    if g > 1:
        groups, keys = torch.empty_like(ids), ids.new_empty((n, k * g))
        _choose(maxima, groups, z, groups, logits, 1, final=False)
        config = CandidatesConfig()
        blocks = triton.cdiv(k, config.BLOCK_K)
        candidates_kernel[(n * blocks,)](z, groups, keys, z.stride(0), vocab, k, blocks, G=g, **vars(config))
    _choose(keys, ids, z, groups, logits, g, final=True)


def _choose(keys: Tensor, chosen: Tensor, z: Tensor, groups: Tensor, logits: Tensor, g: int, *, final: bool) -> None:
    """The arguments are choose_kernel's."""
    m = keys.shape[1]
    lanes = triton.next_power_of_2(m)
    choose_kernel[(len(keys),)](
        keys,
        chosen,
        z,
        groups,
        logits,
        m,
        chosen.shape[1],
        z.stride(0),
        G=g,
        FINAL=final,
        LANES=lanes,
        **vars(ChooseConfig.of_lanes(lanes)),
    )


def top_k(
    z: Tensor,  # (n, >= vocab) fp32, last dimension contiguous
    vocab: int,
    log_partition_at: float | None,
    ids: Tensor,  # (n, k) int32: written, ascending
    logits: Tensor,  # (n, k) fp32: written
) -> Tensor | None:  # on request the log-partition (n,)
    k = ids.shape[1]
    if not suits(vocab, k):
        log_partition = None if log_partition_at is None else logsumexp(z, vocab, log_partition_at)
        chosen = select_blocked(z[:, :vocab], k, 1)
        ids.copy_(chosen)
        torch.gather(z, 1, chosen, out=logits)
        return log_partition
    g = group_size(vocab, k)
    maxima, log_partition = group_maxima(z, vocab, g, log_partition_at)
    choose(z, maxima, vocab, g, ids, logits)
    return log_partition


def logsumexp(
    z: Tensor,  # (n, >= vocab) fp32, last dimension contiguous
    vocab: int,
    temperature: float,
) -> Tensor:  # (n,)
    """Of z / temperature, in one pass; z is left as it is."""
    log_partition = group_maxima(z, vocab, 1, temperature, maxima=False)[1]
    assert log_partition is not None
    return log_partition
