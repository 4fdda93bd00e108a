"""Student logits at the teacher's ids, and their gradients, through dense [tokens, V] chunks.

Works on every device and dtype, and also computes the logit of all other tokens together, whose gradient is dense.
Deterministic: ids are unique within a row, so scatters never collide, and sums over tokens are matrix products in a
fixed order.
"""

import torch
from torch import Tensor

from ..head import Gradients, Head, masked, masked_ids


def logits_at(
    head: Head,
    buffer: Tensor,  # (n, V) workspace
    hidden: Tensor,  # (n, H)
    ids: Tensor,  # (n, K) int64
    rest_at: float | None,
    out: Tensor,  # (n, K), or (n, K + 1) with rest_at: written
) -> None:
    """Logits at ids, and with `rest_at` = T the logit of all other ids together, T logsumexp(z / T)."""
    z = head.logits_(buffer, hidden)
    out[:, : ids.shape[1]] = z.gather(1, ids)
    if rest_at is not None:
        out[:, -1] = head.log_partition_(z.scatter_(1, ids, -torch.inf), rest_at).mul_(rest_at)


def scatter_gradient(
    buffer: Tensor,  # (n, V) workspace
    ids: Tensor,  # (n, K) int64
    d: Tensor,  # (n, K) dloss/dy at ids
) -> Tensor:  # (n, V)
    """dloss/dy over the vocabulary when only ids have a gradient. Added, since ids of gradient 0 need not be unique."""
    return buffer.zero_().scatter_add_(1, ids, d)


def rest_gradient(
    head: Head,
    buffer: Tensor,  # (n, V) workspace
    hidden: Tensor,  # (n, H)
    ids: Tensor,  # (n, K) int64
    dy: Tensor,  # (n, K) dloss/dy at ids
    drest: Tensor,  # (n,) dloss/dz_rest
    z_rest: Tensor,  # (n,)
    rest_at: float,
) -> Tensor:  # (n, V)
    """dloss/dy over the vocabulary: outside ids it is dloss/dz_rest exp((z_v - z_rest) / T) dz/dy."""
    z = head.logits_(buffer, hidden)
    slope = head.slope(z)
    share = z.sub_(z_rest.unsqueeze(1)).div_(rest_at).exp_().mul_(drest.unsqueeze(1)).mul_(slope)
    # If no other id has any probability (z_rest = -inf), there is no gradient.
    share.masked_fill_((z_rest == -torch.inf).unsqueeze(1), 0)
    return share.scatter_(1, ids, dy)


def forward(
    head: Head,
    hidden: Tensor,  # (N, H)
    indices: Tensor,  # (N, K) int32
    mask: Tensor | None,  # (N,) bool
    rest_at: float | None,
    _lists: list[Tensor],
) -> Tensor:  # (N, K), or (N, K + 1) with rest_at
    n, k = indices.shape
    z = hidden.new_empty((n, k if rest_at is None else k + 1), dtype=head.dtype)
    for rows, buffer in head.walk(hidden):
        ids = masked_ids(indices, mask, head.vocab, rows).long()
        logits_at(head, buffer, masked(hidden, mask, rows), ids, rest_at, z[rows])
    return z


def backward(
    head: Head,
    dz: Tensor,  # (N, K), or (N, K + 1) with rest_at
    z: Tensor | None,  # of the same shape, with a soft-cap or rest_at
    hidden: Tensor,  # (N, H)
    indices: Tensor,  # (N, K) int32
    mask: Tensor | None,  # (N,) bool
    needs: list[bool],  # hidden, weight, bias
    rest_at: float | None,
    _lists: list[Tensor],
) -> Gradients:
    k = indices.shape[1]
    need_hidden, need_weight, need_bias = needs
    grad_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if need_hidden else None
    grad_weight = hidden.new_zeros(head.weight.shape, dtype=head.dtype) if need_weight else None
    grad_bias = hidden.new_zeros((head.weight.shape[0],), dtype=head.dtype) if need_bias else None
    for rows, buffer in head.walk(hidden):
        x, ids = masked(hidden, mask, rows), masked(indices, mask, rows).long()
        dy = head.by_y(dz[rows, :k], None if z is None else z[rows, :k])
        if rest_at is not None and z is not None:
            d = rest_gradient(head, buffer, x, ids, dy, dz[rows, k], z[rows, k], rest_at)
        else:
            d = scatter_gradient(buffer, ids, dy)
        dx = head.backpropagate(d, x, need_hidden, grad_weight, grad_bias)
        if grad_hidden is not None and dx is not None:
            grad_hidden[rows] = dx
    return grad_hidden, grad_weight, grad_bias
