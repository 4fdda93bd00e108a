"""selected_logits: the student's logits at given ids, without the other logits, and with its gradient.

    z_nk = logit of token v = ids_nk (head.py); dhidden_n = sum_k dy_nk weight_v; dweight_v = sum of dy_nk hidden_n
With `rest_at` = T there is one more column, the logit of all other tokens together at temperature T:
    z_rest = T logsumexp_{v not in ids} (z_v / T),  dz_rest / dz_v = exp((z_v - z_rest) / T)
Three ways: over unions of ids on a GPU (gpu/selected.py), single rows of the head on a CPU (head_sparse.py), and dense
chunks everywhere else (head_dense.py), where K is a large part of V and wherever z_rest is wanted.
"""

from types import ModuleType

import torch
from torch import Tensor

from . import head_dense, head_sparse
from .head import Head, accumulate_dtype

# How many times larger than K the vocabulary has to be before a product over unions of ids beats a dense one on a GPU.
UNION_RATIO = 8


def _way(head: Head, k: int, rest: bool) -> ModuleType:
    """The module whose `forward` and `backward` do the work."""
    if not rest and head.backend == "triton" and head.vocab >= UNION_RATIO * k:
        from .gpu import selected as union

        return union
    if not rest and head_sparse.suits(head, k):
        return head_sparse
    return head_dense


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
    way = _way(head, indices.shape[1], rest_at is not None)
    with torch.cuda.device_of(hidden), torch.autocast(hidden.device.type, enabled=False):
        return way.forward(head, hidden, indices, mask, rest_at)


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
    way = _way(head, indices.shape[1], rest_at is not None)
    with torch.cuda.device_of(hidden), torch.autocast(hidden.device.type, enabled=False):
        grads = way.backward(head, dz, z, hidden, indices, mask, needs, rest_at)
    inputs = zip(grads, (hidden, weight, bias), strict=True)
    return [g.to(x.dtype) for g, x in inputs if g is not None and x is not None]


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
