"""student_logits: the student's logits at the ids that the teacher's selection (select.py) kept, with their gradients.

    z_nk = logit of token v = ids_nk (head.py); dhidden_n = sum_k dy_nk weight_v; dweight_v = sum of dy_nk hidden_n
With `rest_at` = T there is one more column, the logit of all other tokens together at temperature T:
    z_rest = T logsumexp_{v not in ids} (z_v / T),  dz_rest / dz_v = exp((z_v - z_rest) / T)
Three ways, of which dispatch.choose_way chooses one: "union" multiplies tiles of tokens by the union of their rows of
the head, in Triton (gpu/student.py); "sparse" reads single rows of the head, on a CPU (sparse.py); "dense" multiplies
by the whole head (dense.py): if K is a large part of V, or if z_rest is wanted. The unions are listed once
(gpu/union.py), for the forward pass and the gradient by the hidden states.

The operators keep the names under which they were first registered: an exported graph contains them.
"""

from types import ModuleType

import torch
from torch import Tensor

from ..budgets import current
from ..dispatch import choose_way
from ..head import Head, accumulate_dtype, masked_ids
from . import dense, sparse


def _module(way: str) -> ModuleType:
    """The module whose `forward` and `backward` do the work."""
    if way == "union":
        from ..gpu import student

        return student
    return sparse if way == "sparse" else dense


def student_logits(
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
    sparse_gradient: bool = False,
) -> Tensor:  # (N, K), or (N, K + 1) with rest_at; fp32, or fp64 for fp64
    """`sparse_gradient`: many entries of dz will be 0, so that the backward pass lists the ids of the other entries
    anew."""
    way = choose_way(backend, weight.device, vocab, indices.shape[1], rest_at is not None)
    lists = []
    if way == "union":
        wide = max(hidden.element_size(), weight.element_size()) > operands.itemsize
        lists = id_lists(indices, mask, vocab, operands, wide)
    settings = (vocab, logit_scale, softcap, operands, rest_at, backend, way, sparse_gradient)
    return _student_logits(hidden, weight, bias, indices, mask, lists, *settings)


@torch.library.custom_op("raft_kernels::id_lists", mutates_args=())
def id_lists(
    indices: Tensor,  # (N, K) int32
    mask: Tensor | None,  # (N,) bool
    vocab: int,
    operands: torch.dtype,
    wide: bool,  # whether hidden or weight has a wider dtype than operands: see gpu/tiles.py
) -> list[Tensor]:
    """The three fields of gpu/union.py's Lists, for the tiles of tokens of the forward product."""
    from ..gpu import student, union

    live = None if mask is None else mask.unsqueeze(1).expand_as(indices)
    with torch.cuda.device_of(indices):
        ids = masked_ids(indices, mask, vocab)
        return list(union.of_tokens(ids, live, vocab, student.token_tile(operands, wide), current().union_pairs))


@id_lists.register_fake
def _(indices, mask, vocab, operands, wide):
    from ..gpu import student, union

    return list(union.empty(indices, vocab, student.token_tile(operands, wide)))


@torch.library.custom_op("raft_kernels::selected_logits", mutates_args=())
def _student_logits(
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    bias: Tensor | None,  # (V,)
    indices: Tensor,  # (N, K) int32
    mask: Tensor | None,  # (N,) bool
    lists: list[Tensor],  # of id_lists for the way "union", else empty
    vocab: int,
    logit_scale: float,
    softcap: float | None,
    operands: torch.dtype,
    rest_at: float | None,
    backend: str,
    way: str,
    sparse_gradient: bool,
) -> Tensor:
    head = Head(weight, bias, vocab, logit_scale, softcap, operands, backend)
    with torch.cuda.device_of(hidden), torch.autocast(hidden.device.type, enabled=False):
        return _module(way).forward(head, hidden, indices, mask, rest_at, lists)


@_student_logits.register_fake
def _(hidden, weight, bias, indices, mask, lists, vocab, logit_scale, softcap, operands, rest_at, backend, *_rest):
    n, k = indices.shape
    return hidden.new_empty((n, k if rest_at is None else k + 1), dtype=accumulate_dtype(operands))


@torch.library.custom_op("raft_kernels::selected_logits_backward", mutates_args=())
def _student_logits_backward(
    dz: Tensor,  # (N, K or K + 1)
    z: Tensor | None,  # (N, K or K + 1), where the gradient needs it
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    bias: Tensor | None,  # (V,)
    indices: Tensor,  # (N, K) int32
    mask: Tensor | None,  # (N,) bool
    lists: list[Tensor],
    needs: list[bool],  # hidden, weight, bias
    vocab: int,
    logit_scale: float,
    softcap: float | None,
    operands: torch.dtype,
    rest_at: float | None,
    backend: str,
    way: str,
    sparse_gradient: bool,
) -> list[Tensor]:
    """The gradients that are needed, in the order hidden, weight, bias."""
    head = Head(weight, bias, vocab, logit_scale, softcap, operands, backend)
    dz = dz.to(head.dtype)
    if mask is not None:
        dz = dz.masked_fill(~mask.unsqueeze(1), 0)
    lists = [] if sparse_gradient else lists
    with torch.cuda.device_of(hidden), torch.autocast(hidden.device.type, enabled=False):
        grads = _module(way).backward(head, dz, z, hidden, indices, mask, needs, rest_at, lists)
    inputs = zip(grads, (hidden, weight, bias), strict=True)
    return [g.to(x.dtype) for g, x in inputs if g is not None and x is not None]


@_student_logits_backward.register_fake
def _(dz, z, hidden, weight, bias, indices, mask, lists, needs, *_rest):
    inputs = zip((hidden, weight, bias), needs, strict=True)
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x, need in inputs if need]


def _setup_context(ctx, inputs, output):
    hidden, weight, bias, indices, mask, lists, *settings = inputs
    _, _, softcap, _, rest_at, _, _, sparse_gradient = settings
    ctx.set_materialize_grads(False)
    z = output if softcap is not None or rest_at is not None else None
    ctx.save_for_backward(z, hidden, weight, bias, indices, mask, *([] if sparse_gradient else lists))
    ctx.settings, ctx.lists = settings, len(lists)


def _backward(ctx, dz):
    needs = list(ctx.needs_input_grad[:3])
    if dz is None:
        return (*(None,) * 5, [None] * ctx.lists, *(None,) * 8)
    z, hidden, weight, bias, indices, mask, *lists = ctx.saved_tensors
    grads = iter(_student_logits_backward(dz, z, hidden, weight, bias, indices, mask, lists, needs, *ctx.settings))
    return (*(next(grads) if need else None for need in needs), None, None, [None] * ctx.lists, *(None,) * 8)


_student_logits.register_autograd(_backward, setup_context=_setup_context)
