"""Divergence between two categorical distributions given by class logits, and its gradient by the student's.

    log p = log_softmax(teacher logits / T_teacher),  log q = log_softmax(u),  u = student logits / T        (Eqs. 8-9)
    forward: KL(p || q) = sum p (log p - log q)         d/du_i = q_i - p_i                                   (Eq. 10)
    reverse: KL(q || p) = sum q (log q - log p)         d/du_i = q_i (log q_i - log p_i - KL)
    jsd: beta KL(p || m) + (1 - beta) KL(q || m)        d/du_i = (1 - beta) q_i (log q_i - log m_i - KL(q || m))
         with m = beta p + (1 - beta) q
The softmax is over the kept classes only, so the partition function of the full vocabulary cancels.
"""

import math

import torch
from torch import Tensor

DIVERGENCES = ("forward", "reverse", "jsd")


def _gap(weights: Tensor, log_a: Tensor, log_b: Tensor) -> Tensor:
    """log_a - log_b where weights are positive, else 0: a class of no mass adds nothing, even at -inf."""
    return torch.where(weights > 0, log_a - log_b, 0.0)


def divergence_and_gradient(
    student: Tensor,  # (n, C) u
    teacher: Tensor,  # (n, C) teacher logits / T_teacher
    divergence: str,
    beta: float,
) -> tuple[Tensor, Tensor]:  # (n,) and (n, C), the gradient by u
    log_p = torch.log_softmax(teacher, dim=-1)
    log_q = torch.log_softmax(student, dim=-1)
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
