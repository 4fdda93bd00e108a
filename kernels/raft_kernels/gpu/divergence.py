"""Both softmaxes over the kept classes, their divergence and its gradient by the student's: one pass over [N, K].

log p = log_softmax(t / T_teacher),  log q = log_softmax(z / T)                                          (Eqs. 8-9)
value and d/du: raft_kernels.divergence, the same formulae in torch operations                           (Eq. 10)
"""

import triton
import triton.language as tl
from torch import Tensor

from .tiles import DivergenceConfig

# Classes that one program holds; rows of more are computed by torch operations.
MAX_CLASSES = 8192


@triton.jit
def _log_softmax(x):
    top = tl.max(x, 0)
    shifted = x - top
    return shifted - tl.log(tl.sum(tl.exp(shifted), 0))


@triton.jit
def _weighted_gap(weights, log_a, log_b):
    """weights * (log_a - log_b); a class of probability 0 adds nothing, even at -inf. NaN stays NaN."""
    return tl.where(weights == 0, 0.0, weights * (log_a - log_b))


@triton.jit
def divergence_kernel(
    z,  # (n, C) fp32 student's logits
    t,  # (n, C) fp32 teacher's
    loss,  # (n,) fp32
    gradient,  # (n, C) fp32, by z
    c,
    inverse_temperature,
    inverse_teacher_temperature,
    beta,
    scale,
    DIVERGENCE: tl.constexpr,
    LANES: tl.constexpr,
):
    """Program: one token."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    inside = lane < c
    u = tl.load(z + row * c + lane, mask=inside, other=-float("inf")) * inverse_temperature
    log_q = _log_softmax(u)
    log_p = _log_softmax(tl.load(t + row * c + lane, mask=inside, other=-float("inf")) * inverse_teacher_temperature)
    p, q = tl.exp(log_p), tl.exp(log_q)
    if DIVERGENCE == "forward":
        value = tl.sum(_weighted_gap(p, log_p, log_q), 0)
        by_u = q - p
    elif DIVERGENCE == "reverse":
        gap = _weighted_gap(q, log_q, log_p)
        value = tl.sum(gap, 0)
        by_u = gap - q * value
    else:
        a, b = log_p + tl.log(beta), log_q + tl.log(1.0 - beta)
        # The floor is for classes of probability 0 on both sides: -inf - -inf would be NaN.
        top = tl.maximum(tl.maximum(a, b), -1e30)
        log_m = top + tl.log(tl.exp(a - top) + tl.exp(b - top))
        gap = _weighted_gap(q, log_q, log_m)
        kl_q = tl.sum(gap, 0)
        value = beta * tl.sum(_weighted_gap(p, log_p, log_m), 0) + (1.0 - beta) * kl_q
        by_u = (1.0 - beta) * (gap - q * kl_q)
    tl.store(loss + row, scale * value)
    tl.store(gradient + row * c + lane, scale * inverse_temperature * by_u, mask=inside)


def divergence_and_gradient(
    z: Tensor,  # (n, C) fp32
    t: Tensor,  # (n, C) fp32
    temperature: float,
    teacher_temperature: float,
    divergence: str,
    beta: float,
    scale: float,
) -> tuple[Tensor, Tensor]:  # (n,) and (n, C), the gradient by z
    n, c = z.shape
    loss, gradient = z.new_empty(n), z.new_empty((n, c))
    lanes = triton.next_power_of_2(c)
    if n:
        divergence_kernel[(n,)](
            z.contiguous(),
            t.contiguous(),
            loss,
            gradient,
            c,
            1.0 / temperature,
            1.0 / teacher_temperature,
            beta,
            scale,
            DIVERGENCE=divergence,
            LANES=lanes,
            **vars(DivergenceConfig.of_lanes(lanes)),
        )
    return loss, gradient
