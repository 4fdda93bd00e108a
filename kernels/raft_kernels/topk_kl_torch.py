"""topk_kl in plain torch operations: the forward and backward pass behind the custom operators of topk_kl.py."""

import torch
from torch import Tensor

from . import head_dense, head_sparse
from .divergence import divergence_and_gradient
from .head import Head, walk


def _masked(x: Tensor, mask: Tensor | None, rows: slice) -> Tensor:
    """x[rows] with 0 at masked tokens, so that nothing they hold (NaN, ids of no token) reaches a product."""
    return x[rows] if mask is None else x[rows].masked_fill(~mask[rows].view(-1, *[1] * (x.ndim - 1)), 0)


def _checked(ids: Tensor, vocab: int) -> Tensor:
    """ids, known to be rows of the head. A CPU reads them without bounds, and has nothing to wait for to look first."""
    if ids.device.type == "cpu" and ids.numel():
        low, high = (int(x) for x in torch.aminmax(ids))
        if low < 0 or high >= vocab:
            raise ValueError(f"topk_kl: teacher.indices lie in {low}..{high}, the student's ids in 0..{vocab - 1}")
    return ids


def _classes(
    z: Tensor,  # (n, K) student logits
    rest: Tensor | None,  # (n,) student's u_rest: tail="bucket"
    teacher_logits: Tensor,  # (n, K)
    log_partition: Tensor | None,  # (n,) at the teacher's temperature: tail="bucket"
    temperature: float,
    teacher_temperature: float,
) -> tuple[Tensor, Tensor]:  # (n, K or K + 1) each
    """Class logits over temperature of student and teacher."""
    u, t = z / temperature, teacher_logits.to(z.dtype) / teacher_temperature
    if rest is None or log_partition is None:
        return u, t
    log_partition = log_partition.to(z.dtype)
    # 1 - sum_S p comes out of rounding as noise around 0 where S holds all mass; the floor keeps its logarithm finite.
    p_rest = (1 - (t - log_partition.unsqueeze(1)).exp().sum(-1)).clamp_min(torch.finfo(t.dtype).eps)
    t_rest = (p_rest.log() + log_partition).masked_fill(rest == -torch.inf, -torch.inf)
    return torch.cat([u, rest.unsqueeze(1)], dim=1), torch.cat([t, t_rest.unsqueeze(1)], dim=1)


def forward(
    head: Head,
    hidden: Tensor,  # (N, H)
    indices: Tensor,  # (N, K) int32
    teacher_logits: Tensor,  # (N, K)
    log_partition: Tensor | None,  # (N,); present means tail="bucket"
    mask: Tensor | None,  # (N,) bool
    temperature: float,
    teacher_temperature: float,
    divergence: str,
    beta: float,
    loss_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (N,), its gradient by y at the ids and, for the bucket, by u_rest (N, K or K + 1), and u_rest (N or 0,)."""
    n, k = indices.shape
    bucket = log_partition is not None
    loss = hidden.new_empty((n,), dtype=head.dtype)
    gradient = hidden.new_empty((n, k + bucket), dtype=head.dtype)
    rest_kept = hidden.new_empty((n if bucket else 0,), dtype=head.dtype)

    def finish(rows: slice, z: Tensor, rest: Tensor | None) -> None:
        partition = None if log_partition is None else _masked(log_partition, mask, rows)
        logits = _masked(teacher_logits, mask, rows)
        student, teacher = _classes(z, rest, logits, partition, temperature, teacher_temperature)
        value, by_u = divergence_and_gradient(student, teacher, divergence, beta)
        by_u[:, :k] *= head.slope(z) / temperature
        torch.mul(value, loss_scale, out=loss[rows])
        torch.mul(by_u, loss_scale, out=gradient[rows])

    if not bucket and head_sparse.suits(head, k):
        for rows in head_sparse.table_tiles(head, n, k):
            ids = _checked(_masked(indices, mask, rows), head.vocab)
            table, places = head_sparse.head_rows(head, ids)
            y = head_sparse.selected_products(head.operand(_masked(hidden, mask, rows)), table, places)
            if head.bias is not None:
                y += head.bias[ids]
            finish(rows, head.transform_(y), None)
    else:
        for rows, buffer in walk(n, head.vocab, hidden, head.dtype):
            ids = _checked(_masked(indices, mask, rows), head.vocab).long()
            x = _masked(hidden, mask, rows)
            z, rest = head_dense.selected_logits(head, buffer, x, ids, temperature if bucket else None)
            if rest is not None:
                rest_kept[rows] = rest
            finish(rows, z, rest)
    if mask is not None:
        loss.masked_fill_(~mask, 0)
    return loss, gradient, rest_kept


def backward(
    head: Head,
    grad_loss: Tensor,  # (N,)
    gradient: Tensor,  # (N, K or K + 1)
    rest: Tensor,  # (N or 0,)
    hidden: Tensor,  # (N, H)
    indices: Tensor,  # (N, K) int32
    mask: Tensor | None,  # (N,) bool
    needs: list[bool],  # hidden, weight, bias
    temperature: float,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden (its dtype), weight and bias (fp32 or fp64: sums over tokens)."""
    n, k = indices.shape
    need_hidden, need_weight, need_bias = needs
    grad_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if need_hidden else None
    grad_bias = hidden.new_zeros((head.weight.shape[0],), dtype=head.dtype) if need_bias else None

    def upstream(rows: slice) -> Tensor:
        return gradient[rows] * _masked(grad_loss, mask, rows).to(head.dtype).unsqueeze(1)

    if gradient.shape[1] > k or not head_sparse.suits(head, k):
        grad_weight = hidden.new_zeros(head.weight.shape, dtype=head.dtype) if need_weight else None
        for rows, buffer in walk(n, head.vocab, hidden, head.dtype):
            x, ids = _masked(hidden, mask, rows), _masked(indices, mask, rows).long()
            if gradient.shape[1] > k:
                d = head_dense.bucket_gradient(head, buffer, x, ids, upstream(rows), rest[rows], temperature)
            else:
                d = head_dense.scatter_gradient(buffer, ids, upstream(rows))
            dx = head_dense.backpropagate(head, d, x, need_hidden, grad_weight, grad_bias)
            if grad_hidden is not None and dx is not None:
                grad_hidden[rows] = dx
        return grad_hidden, grad_weight, grad_bias

    grad_weight = None
    for rows in head_sparse.tiles(n, k):
        ids = _masked(indices, mask, rows)
        if grad_bias is not None:
            grad_bias.index_add_(0, ids.reshape(-1), upstream(rows).reshape(-1))
        if need_weight:
            x = head.operand(_masked(hidden, mask, rows))
            part = head_sparse.weight_gradient(upstream(rows), x, ids, head.weight.shape[0])
            grad_weight = part if grad_weight is None else grad_weight.add_(part)
    if grad_hidden is not None:
        for rows in head_sparse.table_tiles(head, n, k):
            table, places = head_sparse.head_rows(head, _masked(indices, mask, rows))
            grad_hidden[rows] = head_sparse.hidden_gradient(upstream(rows), table, places)
    return grad_hidden, grad_weight, grad_bias
