"""Inputs for the tests of raft_kernels, and an oracle that shares no code with it: numpy, float64, token by token."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raft_kernels.dispatch import INTERPRETED

# The widest dtype of the backend under test, and what it may be off by beyond fp64's rounding: Triton has no fp64.
WIDEST = torch.float32 if INTERPRETED else torch.float64
FP32 = 1e-4 if INTERPRETED else 0.0


def fewer(n: int, interpreted: int) -> int:
    """n, or a smaller number where kernels are interpreted: selecting costs 40 ms a token there, whatever V and K."""
    return interpreted if INTERPRETED else n


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


def truncated(x: Tensor) -> Tensor:
    """fp32 x cut to the bits of bf16: what the interpreter does in a kernel, where a GPU rounds."""
    return (x.view(torch.int32) & -65536).view(torch.float32)


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


def adversarial(kind: str, n: int, v: int) -> Tensor:  # (n, v) fp32
    """Rows of logits that a selection could get wrong."""
    g = torch.Generator().manual_seed(n * 1000 + v)
    normal, share, ids = torch.randn(n, v, generator=g), torch.rand(n, v, generator=g), torch.arange(v)
    rows = {
        "normal": normal,
        "negative": -normal.abs() - 1,
        "ascending": ids.expand(n, v).float(),
        "descending": -ids.expand(n, v).float(),
        "equal": torch.full((n, v), 0.25),
        "two values": (share < 0.5).float(),
        "few values": (7 * share).floor() / 2 - 1.5,
        "signed zeros": torch.where(share < 0.5, 0.0, -0.0),
        "denormal": (7 * share).floor() * 2.0**-149 - 2.0**-147,
        "ties in every group": (ids % 7 == 3).float() + (ids % 97 == 5) + torch.zeros(n, 1),
        "neighbours": torch.where((ids >= v // 3) & (ids < v // 3 + v // 8), normal + 20, normal),
        "last ids": (ids >= v - 3) + torch.zeros(n, v),
        "all -inf": torch.full((n, v), -math.inf),
        "half -inf": normal.masked_fill(share < 0.5, -math.inf),
        "mostly -inf": normal.masked_fill(share < 0.97, -math.inf),
        "+inf": normal.masked_fill(share < 0.3, math.inf),
        "NaN": normal.masked_fill(share < 0.3, math.nan),
        "NaN and infinities": (normal / 0.0).masked_fill(share < 0.3, math.nan),
    }
    return rows[kind]


KINDS = ["normal", "negative", "ascending", "descending", "equal", "two values", "few values", "signed zeros"]
KINDS += ["denormal", "ties in every group", "neighbours", "last ids", "all -inf", "half -inf", "mostly -inf", "+inf"]
KINDS += ["NaN", "NaN and infinities"]


def sorted_topk(z: Tensor, k: int) -> Tensor:
    """Ids of the k largest of each row, ascending, by a stable sort: of equal values the first; NaN counts as +inf."""
    z = torch.nan_to_num(z, nan=math.inf, posinf=math.inf, neginf=-math.inf)
    z = torch.where(z == 0, 0.0, z)  # a sort by bits, as on a GPU, would put -0 below 0
    return torch.sort(z, dim=-1, descending=True, stable=True).indices[:, :k].sort(-1).values


def selection(z, vocab, k, log_partition_at):
    """What gpu.select.top_k writes and returns, (ids, log-partition); the logits are those at the ids."""
    from raft_kernels.gpu import select

    ids = torch.full((len(z), k), -1, dtype=torch.int32, device=z.device)
    logits = torch.empty((len(z), k), device=z.device)
    log_partition = select.top_k(z, vocab, log_partition_at, ids, logits)
    assert torch.equal(logits.nan_to_num(7.0), z.gather(1, ids.long()).nan_to_num(7.0))
    return ids, log_partition
