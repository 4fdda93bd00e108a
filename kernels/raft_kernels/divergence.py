"""Divergence between two categorical distributions given by class logits, and its gradient by the student's.

    log p = log_softmax(t / T_teacher),  log q = log_softmax(u),  u = z / T                                  (Eqs. 8-9)
    forward: KL(p || q) = sum p (log p - log q)         d/du_i = q_i - p_i                                   (Eq. 10)
    reverse: KL(q || p) = sum q (log q - log p)         d/du_i = q_i (log q_i - log p_i - KL)
    jsd: beta KL(p || m) + (1 - beta) KL(q || m)        d/du_i = (1 - beta) q_i (log q_i - log m_i - KL(q || m))
         with m = beta p + (1 - beta) q
    loss = scale * value,  dloss/dz = scale / T * d/du
The softmax is over the kept classes only, so the partition function of the full vocabulary cancels.

The forward pass keeps dloss/dz [N, C]: the backward pass multiplies it by the upstream gradient and needs no softmax.
"""

import math

import torch
from torch import Tensor

DIVERGENCES = ("forward", "reverse", "jsd")


def _gap(weights: Tensor, log_a: Tensor, log_b: Tensor) -> Tensor:
    """log_a - log_b where weights are positive, else 0: a class of probability 0 adds nothing, even at -inf."""
    return torch.where(weights > 0, log_a - log_b, 0.0)


def _value_and_gradient(
    u: Tensor,  # (n, C) z / T
    t: Tensor,  # (n, C) t / T_teacher
    divergence: str,
    beta: float,
) -> tuple[Tensor, Tensor]:  # (n,) and (n, C), the gradient by u
    log_p = torch.log_softmax(t, dim=-1)
    log_q = torch.log_softmax(u, dim=-1)
    p, q = log_p.exp(), log_q.exp()
    if divergence == "forward":
        return (p * _gap(p, log_p, log_q)).sum(-1), q - p
    if divergence == "reverse":
        gap = _gap(q, log_q, log_p)
        value = (q * gap).sum(-1)
        return value, q * (gap - value.unsqueeze(-1))
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    gap = _gap(q, log_q, log_m)
    kl_q = (q * gap).sum(-1)
    value = beta * (p * _gap(p, log_p, log_m)).sum(-1) + (1 - beta) * kl_q
    return value, (1 - beta) * q * (gap - kl_q.unsqueeze(-1))


def divergence_and_gradient(
    z: Tensor,  # (n, C)
    t: Tensor,  # (n, C)
    temperature: float,
    teacher_temperature: float,
    divergence: str,
    beta: float,
    scale: float,
) -> tuple[Tensor, Tensor]:  # (n,) and (n, C), the gradient by z
    value, by_u = _value_and_gradient(z / temperature, t / teacher_temperature, divergence, beta)
    return value.mul_(scale), by_u.mul_(scale / temperature)


@torch.library.custom_op("raft_kernels::topk_divergence", mutates_args=())
def topk_divergence(
    z: Tensor,  # (N, C) student's logits
    t: Tensor,  # (N, C) teacher's, same dtype
    mask: Tensor | None,  # (N,) bool
    temperature: float,
    teacher_temperature: float,
    divergence: str,
    beta: float,
    scale: float,
    skip_below: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Loss (N,) and its gradient by z (N, C), with 0 for entries of at most `skip_below` times the row's largest."""
    compute = divergence_and_gradient
    if backend == "triton":
        from .gpu import divergence as gpu

        if z.shape[1] <= gpu.MAX_CLASSES:
            compute = gpu.divergence_and_gradient
    with torch.cuda.device_of(z):
        loss, gradient = compute(z, t, temperature, teacher_temperature, divergence, beta, scale)
    if skip_below:
        size = gradient.abs()
        gradient.masked_fill_(size <= skip_below * size.amax(-1, keepdim=True), 0)
    if mask is not None:
        loss.masked_fill_(~mask, 0)
        gradient.masked_fill_(~mask.unsqueeze(1), 0)
    return loss, gradient


@topk_divergence.register_fake
def _(z, t, mask, *_settings):
    return z.new_empty((z.shape[0],)), torch.empty_like(z, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output):
    _, gradient = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(gradient)
    ctx.save_for_backward(gradient, inputs[2])


def _backward(ctx, grad_loss, _grad_gradient):
    gradient, mask = ctx.saved_tensors
    if grad_loss is None:
        return (None,) * 10
    if mask is not None:
        grad_loss = grad_loss.masked_fill(~mask, 0)  # a masked token's upstream gradient may be anything, NaN too
    return gradient * grad_loss.to(gradient.dtype).unsqueeze(1), *(None,) * 9


topk_divergence.register_autograd(_backward, setup_context=_setup_context)
