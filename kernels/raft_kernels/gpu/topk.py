"""linear_topk on a GPU: a chunk of tokens at a time, into one [n, V] fp32 buffer, then exact selection (select.py).

The product is that of cuBLAS or that of project.py. The latter takes the maxima of groups of ids before the logits
leave the chip, which saves the pass over the buffer that finds them.
"""

from torch import Tensor

from ..head import Head, masked
from . import project, select


def linear_topk(
    head: Head,
    hidden: Tensor,  # (N, H)
    mask: Tensor | None,  # (N,) bool
    k: int,
    log_partition_at: float | None,
    indices: Tensor,  # (N, K) int32: written
    logits: Tensor,  # (N, K) fp32: written
    log_partition: Tensor,  # (N or 0,) fp32: written
) -> None:
    fused = project.suits(head, hidden, k, log_partition_at)
    g = select.group_size(head.vocab, k)
    width = -(-head.vocab // 64) * 64  # rows that start at multiples of 16 bytes are read 16 bytes at a time
    for rows, buffer in head.walk(hidden, width, teacher=True):
        x = masked(hidden, mask, rows)
        partition = None
        if fused:
            maxima = project.logits_and_maxima(head, x, g, buffer)
            select.choose(buffer, maxima, head.vocab, g, indices[rows], logits[rows])
        else:
            z = head.logits_(buffer[:, : head.vocab], x)
            partition = select.top_k(z, head.vocab, log_partition_at, indices[rows], logits[rows])
        if partition is not None:
            log_partition[rows] = partition
