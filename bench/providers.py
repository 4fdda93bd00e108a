"""Who computes a distillation loss from hidden states and heads: this library, plain torch, Liger and TRL.

Liger and TRL compute another loss: over the full vocabulary, not over the teacher's top-K. They are what a user would
run instead. A provider that is not installed is left out.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from raft_kernels import linear_topk, linear_topk_kl
from raft_kernels.reference import linear_topk_ref, topk_kl_ref

TEMPERATURE = 1.5


@dataclass(frozen=True)
class Inputs:
    student_hidden: Tensor  # (N, H), requires grad
    student_weight: Tensor  # (V, H), requires grad
    teacher_hidden: Tensor  # (N, H)
    teacher_weight: Tensor  # (V, H)
    k: int


def make_inputs(n: int, h: int, v: int, k: int, dtype: torch.dtype, device: str, regime: str, seed: int = 0) -> Inputs:
    """regime "randn": the K ids of two tokens have nothing in common, the worst case for reading rows of the head.
    "zipf": token frequencies fall as 1/rank, as in text, so that the same ids come up for most tokens."""
    generator = torch.Generator().manual_seed(seed)

    def model() -> tuple[Tensor, Tensor]:
        hidden = torch.randn(n, h, generator=generator)
        weight = torch.randn(v, h, generator=generator) * (3 / h**0.5)
        if regime == "zipf":
            # One hidden unit carries the log frequency of each token.
            hidden[:, 0] = 1
            weight[:, 0] = -torch.log(torch.arange(1, v + 1, dtype=torch.float32))[order]
        return hidden, weight

    order = torch.randperm(v, generator=generator)
    tensors = [x.to(device=device, dtype=dtype) for _ in range(2) for x in model()]
    return Inputs(tensors[0].requires_grad_(), tensors[1].requires_grad_(), tensors[2], tensors[3], k)


def _ours(x: Inputs) -> Tensor:
    return linear_topk_kl(
        x.student_hidden, x.student_weight, x.teacher_hidden, x.teacher_weight, k=x.k, temperature=TEMPERATURE
    ).mean()


def _torch(x: Inputs) -> Tensor:
    with torch.no_grad():
        logits = x.teacher_hidden @ x.teacher_weight.t()
        values, indices = logits.float().topk(x.k, dim=-1)
    selected = (x.student_hidden @ x.student_weight.t()).float().gather(-1, indices)
    log_q = torch.log_softmax(selected / TEMPERATURE, dim=-1)
    log_p = torch.log_softmax(values / TEMPERATURE, dim=-1)
    return TEMPERATURE**2 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def _trl() -> Callable[[Inputs], Tensor]:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    def loss(x: Inputs) -> Tensor:
        divergence, _ = ChunkedDivergenceFunction.apply(
            x.student_hidden, x.student_weight, None, x.teacher_hidden, x.teacher_weight, None, 0.0, TEMPERATURE
        )
        return TEMPERATURE**2 * divergence.mean()

    return loss


def _liger(compiled: bool) -> Callable[[Inputs], Tensor]:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    module = LigerFusedLinearJSDLoss(0.0, 1.0, beta=0.0, temperature=TEMPERATURE, compiled=compiled)

    def loss(x: Inputs) -> Tensor:
        labels = torch.zeros(len(x.student_hidden), dtype=torch.long, device=x.student_hidden.device)
        return module(x.student_hidden, x.student_weight, x.teacher_hidden, x.teacher_weight, labels)

    return loss


def losses(names: list[str], quick: bool) -> dict[str, Callable[[Inputs], Tensor]]:
    """Mean distillation loss of each provider that is installed."""
    makers: dict[str, tuple[str, Callable[[], Callable[[Inputs], Tensor]]]] = {
        "raft_kernels": ("raft_kernels", lambda: _ours),
        "torch": ("torch", lambda: _torch),
        "trl": ("trl.kernels", _trl),
        "liger": ("liger_kernel", lambda: _liger(compiled=not quick)),
    }
    return {name: makers[name][1]() for name in names if importlib.util.find_spec(makers[name][0]) is not None}


def topk(names: list[str]) -> dict[str, Callable[[Inputs], object]]:
    """The teacher's top-K alone, where a provider has one."""
    all_of_them: dict[str, Callable[[Inputs], object]] = {
        "raft_kernels": lambda x: linear_topk(x.teacher_hidden, x.teacher_weight, x.k),
        "torch": lambda x: (x.teacher_hidden @ x.teacher_weight.t()).float().topk(x.k, dim=-1),
    }
    return {name: call for name, call in all_of_them.items() if name in names}


def reference_loss(x: Inputs) -> Tensor:
    """What `raft_kernels` and `torch` both must give, for a check before anything is timed."""
    student, teacher = (x.student_hidden, x.student_weight), (x.teacher_hidden, x.teacher_weight)
    return topk_kl_ref(*student, linear_topk_ref(*teacher, x.k), temperature=TEMPERATURE).mean()
