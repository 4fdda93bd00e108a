"""Student logits at the teacher's ids, and their gradients, on a CPU: only the K head rows of each token are read.

Cheaper than a dense product if K is a small part of V, and without a [tokens, V] workspace:
    y_nk = <hidden_n, weight_v>, v = ids_nk                  a sampled product, torch.sparse.sampled_addmm
    dhidden_n = sum_k d_nk weight_v                          embedding_bag over the head
    dweight_v = sum of d_nk hidden_n over ids_nk = v         embedding_bag over the tokens, one bag per id
One thread computes each of these sums in a fixed order: deterministic.
"""

import functools
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from ..head import Gradients, Head, masked, masked_ids


def chunks(head: Head, n: int, k: int) -> list[slice]:
    """Slices of the n tokens, for work that reads no rows of the head; at least one, even of no tokens."""
    step = max(1, head.budgets.cpu_pairs // k)
    return [slice(i, min(i + step, n)) for i in range(0, max(1, n), step)]


def table_chunks(head: Head, n: int, k: int) -> list[slice]:
    """Slices of the n tokens, short enough for a table of converted rows even if no two tokens share a row."""
    if not head.converts:
        return chunks(head, n, k)
    step = max(1, head.budgets.cpu_table // (k * head.weight.shape[1]))
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


def head_rows(
    head: Head,
    ids: Tensor,  # (n, K) int32
) -> tuple[Tensor, Tensor]:  # (U, H) fp32 or fp64, (n, K) int32
    """A table of head rows, and the place of each id's row in it. If rows need no conversion, the table is the head
    itself."""
    if not head.converts:
        return head.weight.contiguous(), ids
    used = torch.zeros(head.weight.shape[0], dtype=torch.bool)
    used[ids.reshape(-1)] = True
    place = used.cumsum(0, dtype=torch.int32).sub_(1)
    return head.operand(head.weight[used]), place[ids]


@functools.cache
def _silence_beta_warning() -> None:
    """Makes torch warn once, with warnings off, that sparse CSR is in beta: users of a loss need not read that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.eye(1).to_sparse_csr()


def sampled_products(
    hidden: Tensor,  # (n, H) fp32 or fp64
    table: Tensor,  # (U, H), same dtype
    ids: Tensor,  # (n, K) int32
) -> Tensor:  # (n, K)
    _silence_beta_warning()
    n, k = ids.shape
    starts = torch.arange(0, n * k + 1, k, dtype=torch.int32)
    zeros, shape = hidden.new_zeros(n * k), (n, table.shape[0])
    pattern = torch.sparse_csr_tensor(starts, ids.reshape(-1), zeros, shape, check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, hidden.contiguous(), table.t(), beta=0.0).values().view(n, k)


def hidden_gradient(
    d: Tensor,  # (n, K) dloss/dy at ids
    table: Tensor,  # (U, H), same dtype
    ids: Tensor,  # (n, K) int32
) -> Tensor:  # (n, H)
    return F.embedding_bag(ids.contiguous(), table, mode="sum", per_sample_weights=d)


def weight_gradient(
    d: Tensor,  # (n, K) dloss/dy at ids
    hidden: Tensor,  # (n, H), same dtype
    ids: Tensor,  # (n, K) int32
    rows: int,
) -> Tensor:  # (rows, H)
    by_id = ids.reshape(-1).sort(stable=True)
    tokens = (by_id.indices // ids.shape[1]).to(torch.int32)
    starts = torch.searchsorted(by_id.values, torch.arange(rows, dtype=torch.int32), out_int32=True)
    weights = d.reshape(-1)[by_id.indices]
    return F.embedding_bag(tokens, hidden.contiguous(), starts, mode="sum", per_sample_weights=weights)


def forward(
    head: Head,
    hidden: Tensor,  # (N, H)
    indices: Tensor,  # (N, K) int32
    mask: Tensor | None,  # (N,) bool
    _rest_at: None,
    _lists: list[Tensor],
) -> Tensor:  # (N, K)
    n, k = indices.shape
    z = hidden.new_empty((n, k), dtype=head.dtype)
    for rows in table_chunks(head, n, k):
        ids = masked_ids(indices, mask, head.vocab, rows)
        table, places = head_rows(head, ids)
        y = sampled_products(head.operand(masked(hidden, mask, rows)), table, places)
        z[rows] = head.transform_(y if head.bias is None else y.add_(head.bias[ids]))
    return z


def backward(
    head: Head,
    dz: Tensor,  # (N, K)
    z: Tensor | None,  # (N, K) with a soft-cap
    hidden: Tensor,  # (N, H)
    indices: Tensor,  # (N, K) int32
    mask: Tensor | None,  # (N,) bool
    needs: list[bool],  # hidden, weight, bias
    _rest_at: None,
    _lists: list[Tensor],
) -> Gradients:
    n, k = indices.shape
    need_hidden, need_weight, need_bias = needs
    dy = head.by_y(dz, z)
    grad_weight = None
    grad_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if need_hidden else None
    grad_bias = hidden.new_zeros((head.weight.shape[0],), dtype=head.dtype) if need_bias else None
    for rows in chunks(head, n, k):
        ids = masked(indices, mask, rows)
        if grad_bias is not None:
            grad_bias.index_add_(0, ids.reshape(-1), dy[rows].reshape(-1))
        if need_weight:
            x = head.operand(masked(hidden, mask, rows))
            part = weight_gradient(dy[rows], x, ids, head.weight.shape[0])
            grad_weight = part if grad_weight is None else grad_weight.add_(part)
    if grad_hidden is not None:
        for rows in table_chunks(head, n, k):
            table, places = head_rows(head, masked(indices, mask, rows))
            grad_hidden[rows] = hidden_gradient(dy[rows], table, places)
    return grad_hidden, grad_weight, grad_bias
