"""selected_logits: the student's logits at given ids, without the other logits, and with its gradient.

    z_nk = logit of token v = ids_nk (head.py); dhidden_n = sum_k dy_nk weight_v; dweight_v = sum of dy_nk hidden_n
With `rest_at` = T there is one more column, the logit of all other tokens together at temperature T:
    z_rest = T logsumexp_{v not in ids} (z_v / T),  dz_rest / dz_v = exp((z_v - z_rest) / T)
Three ways: over unions of ids on a GPU (gpu/selected.py), single rows of the head on a CPU (head_sparse.py), and dense
chunks everywhere else (head_dense.py), where K is a large part of V and wherever z_rest is wanted.
"""

import torch
from torch import Tensor

from . import head_dense, head_sparse
from .head import Head, accumulate_dtype, walk

# How many times larger than K the vocabulary has to be before a product over unions of ids beats a dense one on a GPU.
UNION_RATIO = 8


def _way(head: Head, k: int, rest: bool) -> str:
    if not rest and head.backend == "triton" and head.vocab >= UNION_RATIO * k:
        return "union"
    if not rest and head_sparse.suits(head, k):
        return "rows"
    return "dense"


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


@torch.library.custom_op("raft_kernels::selected_logits", mutates_args=())
def selected_logits(
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    bias: Tensor | None,  # (V,)
    indices: Tensor,  # (N, K) int32
    mask: Tensor | None,  # (N,) bool
    vocab: int,
    logit_scale: float,
    softcap: float | None,
    operands: torch.dtype,
    rest_at: float | None,
    backend: str,
) -> Tensor:  # (N, K), or (N, K + 1) with rest_at; fp32, or fp64 for fp64
    head = Head(weight, bias, vocab, logit_scale, softcap, operands, backend)
    n, k = indices.shape
    way = _way(head, k, rest_at is not None)
    with torch.cuda.device_of(hidden), torch.autocast(hidden.device.type, enabled=False):
        if way == "union":
            from .gpu import selected as gpu

            ids = _checked(_masked(indices, mask, slice(None)), vocab)
            y = gpu.forward(head, hidden, ids, mask)
            return head.transform_(y if bias is None else y.add_(bias[ids]))
        z = hidden.new_empty((n, k + (rest_at is not None)), dtype=head.dtype)
        if way == "rows":
            for rows in head_sparse.table_tiles(head, n, k):
                ids = _checked(_masked(indices, mask, rows), vocab)
                table, places = head_sparse.head_rows(head, ids)
                y = head_sparse.selected_products(head.operand(_masked(hidden, mask, rows)), table, places)
                z[rows] = head.transform_(y if bias is None else y.add_(bias[ids]))
            return z
        for rows, buffer in walk(n, vocab, hidden, head.dtype):
            ids = _checked(_masked(indices, mask, rows), vocab).long()
            head_dense.selected_logits(head, buffer, _masked(hidden, mask, rows), ids, rest_at, z[rows])
    return z


@selected_logits.register_fake
def _(hidden, weight, bias, indices, mask, vocab, logit_scale, softcap, operands, rest_at, backend):
    n, k = indices.shape
    return hidden.new_empty((n, k + (rest_at is not None)), dtype=accumulate_dtype(operands))


@torch.library.custom_op("raft_kernels::selected_logits_backward", mutates_args=())
def _selected_logits_backward(
    dz: Tensor,  # (N, K or K + 1)
    z: Tensor | None,  # (N, K or K + 1), where the gradient needs it
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    bias: Tensor | None,  # (V,)
    indices: Tensor,  # (N, K) int32
    mask: Tensor | None,  # (N,) bool
    needs: list[bool],  # hidden, weight, bias
    vocab: int,
    logit_scale: float,
    softcap: float | None,
    operands: torch.dtype,
    rest_at: float | None,
    backend: str,
) -> list[Tensor]:
    """The gradients that are needed, in the order hidden, weight, bias."""
    head = Head(weight, bias, vocab, logit_scale, softcap, operands, backend)
    dz = dz.to(head.dtype)
    if mask is not None:
        dz = dz.masked_fill(~mask.unsqueeze(1), 0)
    with torch.cuda.device_of(hidden), torch.autocast(hidden.device.type, enabled=False):
        way = _way(head, indices.shape[1], rest_at is not None)
        backward = {"union": _by_union, "rows": _by_rows, "dense": _dense}[way]
        grads = backward(head, dz, z, hidden, indices, mask, needs, rest_at)
    inputs = zip(grads, (hidden, weight, bias), strict=True)
    return [g.to(x.dtype) for g, x in inputs if g is not None and x is not None]


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def _by_y(head: Head, dz: Tensor, z: Tensor | None) -> Tensor:
    """dloss/dy from dloss/dz."""
    if z is None and head.logit_scale == 1.0:
        return dz
    return dz * (head.logit_scale if z is None else head.slope(z))


def _by_union(
    head: Head,
    dz: Tensor,  # (N, K)
    z: Tensor | None,  # (N, K)
    hidden: Tensor,  # (N, H)
    indices: Tensor,  # (N, K) int32
    mask: Tensor | None,
    needs: list[bool],
    _rest_at: float | None,
) -> Gradients:
    from .gpu import selected as gpu

    dy = _by_y(head, dz, z)
    need_hidden, need_weight, need_bias = needs
    grad_hidden = gpu.hidden_gradient(head, dy, hidden, indices) if need_hidden else None
    if grad_hidden is not None and mask is not None:
        # Their own entries are 0, but 0 times an infinite row of the head that a neighbour uses is not.
        grad_hidden.masked_fill_(~mask.unsqueeze(1), 0)
    if not (need_weight or need_bias):
        return grad_hidden, None, None
    return grad_hidden, *gpu.weight_gradient(head, dy, hidden, indices, need_weight, need_bias)


def _by_rows(
    head: Head,
    dz: Tensor,  # (N, K)
    z: Tensor | None,  # (N, K)
    hidden: Tensor,  # (N, H)
    indices: Tensor,  # (N, K) int32
    mask: Tensor | None,
    needs: list[bool],
    _rest_at: float | None,
) -> Gradients:
    n, k = indices.shape
    need_hidden, need_weight, need_bias = needs
    dy = _by_y(head, dz, z)
    grad_weight = None
    grad_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if need_hidden else None
    grad_bias = hidden.new_zeros((head.weight.shape[0],), dtype=head.dtype) if need_bias else None
    for rows in head_sparse.tiles(n, k):
        ids = _masked(indices, mask, rows)
        if grad_bias is not None:
            grad_bias.index_add_(0, ids.reshape(-1), dy[rows].reshape(-1))
        if need_weight:
            x = head.operand(_masked(hidden, mask, rows))
            part = head_sparse.weight_gradient(dy[rows], x, ids, head.weight.shape[0])
            grad_weight = part if grad_weight is None else grad_weight.add_(part)
    if grad_hidden is not None:
        for rows in head_sparse.table_tiles(head, n, k):
            table, places = head_sparse.head_rows(head, _masked(indices, mask, rows))
            grad_hidden[rows] = head_sparse.hidden_gradient(dy[rows], table, places)
    return grad_hidden, grad_weight, grad_bias


def _dense(
    head: Head,
    dz: Tensor,  # (N, K or K + 1)
    z: Tensor | None,  # (N, K or K + 1)
    hidden: Tensor,  # (N, H)
    indices: Tensor,  # (N, K) int32
    mask: Tensor | None,
    needs: list[bool],
    rest_at: float | None,
) -> Gradients:
    n, k = indices.shape
    need_hidden, need_weight, need_bias = needs
    grad_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if need_hidden else None
    grad_weight = hidden.new_zeros(head.weight.shape, dtype=head.dtype) if need_weight else None
    grad_bias = hidden.new_zeros((head.weight.shape[0],), dtype=head.dtype) if need_bias else None
    for rows, buffer in walk(n, head.vocab, hidden, head.dtype):
        x, ids = _masked(hidden, mask, rows), _masked(indices, mask, rows).long()
        dy = _by_y(head, dz[rows, :k], None if z is None else z[rows, :k])
        if rest_at is not None and z is not None:
            d = head_dense.rest_gradient(head, buffer, x, ids, dy, dz[rows, k], z[rows, k], rest_at)
        else:
            d = head_dense.scatter_gradient(buffer, ids, dy)
        dx = head_dense.backpropagate(head, d, x, need_hidden, grad_weight, grad_bias)
        if grad_hidden is not None and dx is not None:
            grad_hidden[rows] = dx
    return grad_hidden, grad_weight, grad_bias


@_selected_logits_backward.register_fake
def _(dz, z, hidden, weight, bias, indices, mask, needs, *_rest):
    inputs = zip((hidden, weight, bias), needs, strict=True)
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x, need in inputs if need]


def _setup_context(ctx, inputs, output):
    hidden, weight, bias, indices, mask, *settings = inputs
    _, _, softcap, _, rest_at, _ = settings
    ctx.set_materialize_grads(False)
    z = output if softcap is not None or rest_at is not None else None
    ctx.save_for_backward(z, hidden, weight, bias, indices, mask)
    ctx.settings = settings


def _backward(ctx, dz):
    needs = list(ctx.needs_input_grad[:3])
    if dz is None:
        return (None,) * 11
    grads = iter(_selected_logits_backward(dz, *ctx.saved_tensors, needs, *ctx.settings))
    return (*(next(grads) if need else None for need in needs), *(None,) * 8)


selected_logits.register_autograd(_backward, setup_context=_setup_context)
