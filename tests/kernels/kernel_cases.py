"""Inputs for the tests of raft_kernels, and an oracle that shares no code with it: numpy, float64, token by token."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class Case:
    student_hidden: Tensor  # (N, H)
    student_weight: Tensor  # (V, H)
    student_bias: Tensor  # (V,)
    teacher_hidden: Tensor  # (N, H)
    teacher_weight: Tensor  # (V, H)

    @property
    def student(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.student_hidden, self.student_weight, self.student_bias

    @property
    def teacher(self) -> tuple[Tensor, Tensor]:
        return self.teacher_hidden, self.teacher_weight

    def to(self, dtype: torch.dtype) -> "Case":
        return Case(*(x.detach().to(dtype) for x in vars(self).values()))


def make_case(n: int, h: int, v: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Case:
    g = torch.Generator().manual_seed(seed)
    scale = 2 / math.sqrt(h)
    shapes = ((n, h), (v, h), (v,), (n, h), (v, h))
    tensors = [torch.randn(*shape, generator=g, dtype=torch.float64) for shape in shapes]
    tensors[1] *= scale
    tensors[4] *= scale
    return Case(*(x.to(dtype) for x in tensors))


def leaves(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [x.detach().clone().requires_grad_() for x in tensors]


def np64(x: Tensor) -> np.ndarray:
    return x.detach().to(torch.float64).numpy()


def oracle_logits(hidden, weight, bias=None, logit_scale=1.0, softcap=None) -> np.ndarray:
    n, v = len(hidden), len(weight)
    z = np.empty((n, v))
    for i in range(n):
        for j in range(v):
            y = float(np.dot(hidden[i], weight[j])) + (0.0 if bias is None else float(bias[j]))
            y *= logit_scale
            z[i, j] = y if softcap is None else softcap * math.tanh(y / softcap)
    return z


def oracle_topk(z: np.ndarray, k: int) -> list[list[int]]:
    """Ids of the k largest logits of each token, ties to the lowest id, ascending."""
    return [sorted(sorted(range(len(row)), key=lambda j: (-row[j], j))[:k]) for row in z]


def oracle_softmax(z: list[float], temperature: float) -> list[float]:
    top = max(z)
    e = [math.exp((x - top) / temperature) for x in z]
    return [x / sum(e) for x in e]


def oracle_kl(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def oracle_divergence(p: list[float], q: list[float], divergence: str, beta: float) -> float:
    if divergence == "forward":
        return oracle_kl(p, q)
    if divergence == "reverse":
        return oracle_kl(q, p)
    m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
    return beta * oracle_kl(p, m) + (1 - beta) * oracle_kl(q, m)


def oracle_loss(
    student_logits: np.ndarray,  # (N, V)
    teacher_logits: np.ndarray,  # (N, V)
    k: int,
    temperature: float = 1.5,
    teacher_temperature: float | None = None,
    divergence: str = "forward",
    beta: float = 0.5,
    tail: str = "renormalize",
    scale_by_t2: bool = True,
) -> np.ndarray:  # (N,)
    """Eq. 8: temper both over the vocabulary. Eq. 9: truncate to the teacher's top-K and renormalise, or keep the rest
    as one class. Eq. 10: T^2 times the divergence."""
    losses = []
    for student, teacher, ids in zip(student_logits, teacher_logits, oracle_topk(teacher_logits, k), strict=True):
        full = [
            oracle_softmax(list(teacher), teacher_temperature or temperature),
            oracle_softmax(list(student), temperature),
        ]
        kept = [[x[i] for i in ids] for x in full]
        if tail == "renormalize":
            p, q = ([x / sum(side) for x in side] for side in kept)
        else:
            rest = [sum(x for i, x in enumerate(side) if i not in ids) for side in full]
            p, q = ([*side, r] for side, r in zip(kept, rest, strict=True))
        loss = oracle_divergence(p, q, divergence, beta)
        losses.append(loss * temperature**2 if scale_by_t2 else loss)
    return np.array(losses)
