"""linear_cross_entropy: cross-entropy of hidden @ weight.T, without the [N, V] logits.

    loss_n = logsumexp_v z_nv - z_n,label,  dloss_n/dz_nv = softmax(z_n)_v - [v = label]

Chunks of tokens share one buffer of logits. Three ways:
- on CUDA with Liger installed: Liger's fused linear cross-entropy;
- for a sum or a mean the forward pass also computes the gradients, while it holds a chunk's logits: three products in
  all, as many as on materialised logits, and the backward pass only scales them;
- per token (reduction="none") and under torch.compile the backward pass computes the logits again: four products.
torch's own F.linear_cross_entropy takes as long, but two to three times the memory of the second way; with its default
chunks it is up to eleven times slower at real vocabularies; it sums bf16 in bf16 and has no soft-cap (bench/LOG.md).
"""

import functools
import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .checks import check_choice, check_linear, check_positive
from .head import Head, accumulate_dtype, logsumexp_, operand_dtype
from .parallel import gathered

REDUCTIONS = ("mean", "sum", "none")


@torch.library.custom_op("raft_kernels::linear_cross_entropy", mutates_args=())
def _chunked(
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    bias: Tensor | None,  # (V,)
    labels: Tensor,  # (N,) int64, all in 0..V-1
    softcap: float | None,
    operands: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Returns loss (N,) and logsumexp (N,)."""
    head = Head(weight, bias, weight.shape[0], 1.0, softcap, operands)
    loss = hidden.new_empty((hidden.shape[0],), dtype=head.dtype)
    partition = torch.empty_like(loss)
    with torch.autocast(hidden.device.type, enabled=False):
        for rows, buffer in head.walk(hidden):
            z = head.logits_(buffer, hidden[rows])
            at_label = z.gather(1, labels[rows].unsqueeze(1)).squeeze(1)
            partition[rows] = logsumexp_(z)
            loss[rows] = partition[rows] - at_label
    return loss, partition


@_chunked.register_fake
def _(hidden, weight, bias, labels, softcap, operands):
    loss = hidden.new_empty((hidden.shape[0],), dtype=accumulate_dtype(operands))
    return loss, torch.empty_like(loss)


@torch.library.custom_op("raft_kernels::linear_cross_entropy_backward", mutates_args=())
def _chunked_backward(
    grad_loss: Tensor,  # (N,)
    partition: Tensor,  # (N,)
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    bias: Tensor | None,  # (V,)
    labels: Tensor,  # (N,) int64
    needs: list[bool],  # hidden, weight, bias
    softcap: float | None,
    operands: torch.dtype,
) -> list[Tensor]:
    """The gradients that are needed, in the order hidden, weight, bias."""
    head = Head(weight, bias, weight.shape[0], 1.0, softcap, operands)
    need_hidden, need_weight, need_bias = needs
    grad_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if need_hidden else None
    grad_weight = hidden.new_zeros(weight.shape, dtype=head.dtype) if need_weight else None
    grad_bias = hidden.new_zeros(weight.shape[:1], dtype=head.dtype) if need_bias else None
    with torch.autocast(hidden.device.type, enabled=False):
        for rows, buffer in head.walk(hidden):
            x, upstream = hidden[rows], grad_loss[rows].to(head.dtype).unsqueeze(1)
            z = head.logits_(buffer, x)
            slope = head.slope(z)
            d = z.sub_(partition[rows].unsqueeze(1)).exp_()
            d.scatter_add_(1, labels[rows].unsqueeze(1), torch.full_like(upstream, -1.0))
            dx = head.backpropagate(d.mul_(upstream).mul_(slope), x, need_hidden, grad_weight, grad_bias)
            if grad_hidden is not None and dx is not None:
                grad_hidden[rows] = dx
    grads = zip((grad_hidden, grad_weight, grad_bias), (hidden, weight, bias), strict=True)
    return [g.to(x.dtype) for g, x in grads if g is not None and x is not None]


@_chunked_backward.register_fake
def _(grad_loss, partition, hidden, weight, bias, labels, needs, softcap, operands):
    inputs = zip((hidden, weight, bias), needs, strict=True)
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x, need in inputs if need]


def _setup_context(ctx, inputs, output):
    *tensors, softcap, operands = inputs
    _, partition = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(partition)
    ctx.save_for_backward(partition, *tensors)
    ctx.settings = (softcap, operands)


def _backward(ctx, grad_loss, _grad_partition):
    needs = list(ctx.needs_input_grad[:3])
    if grad_loss is None:
        return (None,) * 6
    grads = iter(_chunked_backward(grad_loss, *ctx.saved_tensors, needs, *ctx.settings))
    return (*(next(grads) if need else None for need in needs), None, None, None)


_chunked.register_autograd(_backward, setup_context=_setup_context)


def _to_gradient_(
    head: Head,
    z: Tensor,  # (n, V) logits: become dloss/dy, y before scale and soft-cap
    labels: Tensor,  # (n,) int64
    keep: Tensor | None,  # (n,) of z's dtype, 1 where a token counts, else 0
) -> Tensor:  # (n,) loss
    loss = z.new_empty(len(z))
    step = max(1, head.budgets.cpu_cache // z.shape[1]) if z.device.type == "cpu" else len(z)
    for first in range(0, len(z), step):
        rows = slice(first, first + step)
        part, label = z[rows], labels[rows].unsqueeze(1)
        log_q = torch.log_softmax(part, -1)
        slope = head.slope(part)
        loss[rows] = -log_q.gather(1, label).squeeze(1)
        torch.exp(log_q, out=part)
        part.scatter_add_(1, label, part.new_full((), -1.0).expand(label.shape))
        if keep is not None:
            part.mul_(keep[rows].unsqueeze(1))
        if isinstance(slope, Tensor):
            part.mul_(slope)
    return loss if keep is None else loss.mul_(keep)


def _sum_and_gradients(
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    bias: Tensor | None,  # (V,)
    labels: Tensor,  # (N,) int64, all in 0..V-1
    keep: Tensor | None,  # (N,) bool
    softcap: float | None,
    operands: torch.dtype,
    needs: Sequence[bool],  # hidden, weight, bias
) -> tuple[Tensor, list[Tensor | None]]:
    """The sum of the losses, and its gradients in the dtype of the sums: (N, H), (V, H) and (V,)."""
    head = Head(weight, bias, weight.shape[0], 1.0, softcap, operands)
    need_hidden, need_weight, need_bias = needs
    n = len(hidden)
    # In fp32 until they are scaled: fp16 would lose what a GradScaler's factor is there to keep.
    grad_hidden = hidden.new_empty(hidden.shape, dtype=head.dtype) if need_hidden else None
    grad_weight = hidden.new_empty(weight.shape, dtype=head.dtype) if need_weight else None
    grad_bias = hidden.new_zeros(weight.shape[:1], dtype=head.dtype) if need_bias else None
    kept = None if keep is None else keep.to(head.dtype)
    total = hidden.new_zeros((), dtype=head.dtype)
    for rows, buffer in head.walk(hidden, least=head.budgets.cross_entropy_tokens):
        x = hidden[rows]
        z = head.logits_(buffer, x)
        total += _to_gradient_(head, z, labels[rows], None if kept is None else kept[rows]).sum()
        dx = head.backpropagate(z, x, need_hidden, grad_weight, grad_bias, add=rows.start > 0)
        if grad_hidden is not None and dx is not None:
            grad_hidden[rows] = dx
    if not n and grad_weight is not None:
        grad_weight.zero_()
    return total, [grad_hidden, grad_weight, grad_bias]


class _SummedLoss(torch.autograd.Function):
    """The forward pass computes the gradients; the backward pass scales them by the upstream gradient, in place, and
    returns them. A second backward pass through the same graph computes them again."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, keep, softcap, operands):
        needs = ctx.needs_input_grad[:3]
        ctx.settings = (softcap, operands, needs)
        ctx.save_for_backward(hidden, weight, bias, labels, keep)
        with torch.autocast(hidden.device.type, enabled=False):
            total, ctx.grads = _sum_and_gradients(hidden, weight, bias, labels, keep, *ctx.settings)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            with torch.autocast(upstream.device.type, enabled=False), torch.no_grad():
                _, grads = _sum_and_gradients(*ctx.saved_tensors, *ctx.settings)
        dtypes = [None if x is None else x.dtype for x in ctx.saved_tensors[:3]]
        scaled = [None if g is None else g.mul_(upstream).to(t) for g, t in zip(grads, dtypes, strict=True)]
        return (*scaled, None, None, None, None)


@functools.cache
def _has_liger() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None


def choose_provider(
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    bias: Tensor | None,  # (V,)
    reduction: str,
) -> str:
    """One of "liger", "forward" (the forward pass computes the gradients) and "recompute"."""
    if torch.compiler.is_compiling():
        return "recompute"
    params = [weight] if bias is None else [weight, bias]
    if hidden.device.type == "cuda" and _has_liger():
        one_dtype = all(p.dtype == hidden.dtype for p in params) and operand_dtype(hidden, weight) == hidden.dtype
        # Liger computes the head's gradient only together with that of hidden.
        follows = hidden.requires_grad or not any(p.requires_grad for p in params)
        if one_dtype and follows and hidden.dtype != torch.float64:
            return "liger"
    wanted = torch.is_grad_enabled() and any(p.requires_grad for p in (hidden, *params))
    return "forward" if wanted and reduction != "none" else "recompute"


def _liger(
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    bias: Tensor | None,  # (V,)
    labels: Tensor,  # (N,) int64, ignored ones -100
    softcap: float | None,
    reduction: str,
) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    # Without accum_dtype, gradients of bf16 weights would be summed over chunks in bf16. Liger's mean of nothing is 0.
    options = {"softcap": softcap, "reduction": reduction, "accum_dtype": torch.float32}
    return liger_fused_linear_cross_entropy(hidden, weight, labels, bias, **options)


def may_look(x: Tensor) -> bool:
    """Whether the host can read values without waiting for a device."""
    return x.device.type == "cpu"


def linear_cross_entropy(
    hidden: Tensor,  # (..., H)
    weight: Tensor,  # (V, H)
    labels: Tensor,  # (...)
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    bias: Tensor | None = None,  # (V,)
    softcap: float | None = None,
) -> Tensor:  # () or (...), fp32 (fp64 for fp64)
    """F.cross_entropy(softcap(hidden @ weight.T + bias), labels), in chunks.

    The mean is over labels that are not `ignore_index`; if all are, it is 0, with a gradient of 0. An ignored position
    has loss 0 and gradient 0, whatever its hidden state holds.
    """
    op = "linear_cross_entropy"
    weight, bias = gathered(weight, bias)
    check_linear(op, hidden, weight, bias)
    check_choice(op, "reduction", reduction, REDUCTIONS)
    check_positive(op, softcap=softcap)
    if labels.shape != hidden.shape[:-1]:
        raise ValueError(
            f"{op}: labels {tuple(labels.shape)} must have the leading sizes of hidden, {tuple(hidden.shape[:-1])}"
        )
    if labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ValueError(f"{op}: labels must be integers, got {labels.dtype}")
    flat = labels.reshape(-1).long()
    x = hidden.reshape(-1, hidden.shape[-1])
    provider = choose_provider(x, weight, bias, reduction)
    operands = operand_dtype(hidden, weight)
    keep = flat != ignore_index
    if provider == "forward" and may_look(x):
        # Most positions may be ignored: those of prompts, for example.
        live = keep.nonzero().squeeze(1)
        if len(live) < len(flat):
            x, flat = x[live], flat[live]
        loss = _SummedLoss.apply(x, weight, bias, flat, None, softcap, operands)
    else:
        # What an ignored position holds (NaN too) must not reach a sum over tokens.
        x, safe = x.masked_fill(~keep.unsqueeze(1), 0), flat.masked_fill(~keep, 0)
        if provider == "liger":
            loss = _liger(x, weight, bias, flat.masked_fill(~keep, -100), softcap, reduction)
            return loss.view(labels.shape) if reduction == "none" else loss
        if provider == "forward":
            loss = _SummedLoss.apply(x, weight, bias, safe, keep, softcap, operands)
        else:
            loss = _chunked(x, weight, bias, safe, softcap, operands)[0].masked_fill(~keep, 0)
            loss = loss if reduction == "none" else loss.sum()
    if reduction == "mean":
        # Without any label the mean is 0 / 1, not 0 / 0.
        return loss / keep.sum().clamp_min(1)
    return loss.view(labels.shape) if reduction == "none" else loss
