"""Whether a provider of a loss computes it: checked before it is timed, at the size that is timed.

The reference works on full logits, so it gets a few tokens spread over the batch. The provider gets all tokens, but
only the losses of those few are summed for the backward pass: the gradient of the head must then be theirs alone, and
all other tokens must have none.
"""

import math
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.kernels.cases import TEMPERATURE, Inputs
from raft_kernels import TopK
from raft_kernels.reference import linear_topk_ref, topk_kl_ref

TOKENS = 64
# Relative, in the norm over all elements. Half precision: logits of 30 that are rounded to bf16 are off by 0.06, and a
# probability by as much; a wrong id, row or factor shows at once.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class WrongResult(Exception):
    """A provider computed something else."""


class Reference:
    """What a few tokens must give, computed in fp32 (fp64 for fp64) when it is first needed."""

    def __init__(self, x: Inputs) -> None:
        n = len(x.teacher_hidden)
        self.x = x
        self.rows = (
            torch.linspace(0, n - 1, min(n, TOKENS), dtype=torch.float64).round().long().to(x.teacher_hidden.device)
        )
        self.tolerance = TOLERANCE[x.teacher_hidden.dtype]

    def _precise(self, x: Tensor) -> Tensor:
        return x.detach().to(torch.promote_types(x.dtype, torch.float32))

    def check(self, op: str, call: Callable[[], object]) -> None:
        """Raises WrongResult."""
        checks = {"linear_topk": self._check_topk, "linear_cross_entropy": self._check_cross_entropy}
        checks.get(op, self._check_loss)(call)

    def _check_topk(self, call: Callable[[], object]) -> None:
        """By value: where two logits are nearly equal either id may be kept."""
        ids, logits, *_ = cast(tuple[Tensor, ...], call())
        hidden, weight = (self._precise(t) for t in (self.x.teacher_hidden[self.rows], self.x.teacher_weight))
        expected = linear_topk_ref(hidden, weight, self.x.k).logits.sort(-1).values
        ids = ids[self.rows].long()
        if ids.sort(-1).values.diff(dim=-1).eq(0).any():
            raise WrongResult("wrong result: an id twice in a row")
        at_ids = (hidden @ weight.t()).gather(-1, ids).sort(-1).values
        self._close("logits of the chosen ids", at_ids, expected)
        self._close("logits", logits[self.rows].sort(-1).values, expected)

    def _check_cross_entropy(self, call: Callable[[], object]) -> None:
        """All tokens: there is one number for them."""
        loss = cast(Tensor, call())
        found = torch.autograd.grad(loss, self.x.parameters)
        hidden, weight = (self._precise(t).requires_grad_() for t in self.x.parameters)
        expected_loss = F.cross_entropy(hidden @ weight.t(), self.x.labels, reduction="sum")
        expected = torch.autograd.grad(expected_loss, (hidden, weight))
        self._close_losses((loss, *found), (expected_loss.detach(), *expected))

    def _check_loss(self, call: Callable[[], object]) -> None:
        loss = cast(Tensor, call())
        gradients = torch.autograd.grad(loss[self.rows].sum(), self.x.parameters)
        self._close_losses((loss[self.rows], gradients[0][self.rows], gradients[1]), self._losses)
        others = torch.ones(len(gradients[0]), dtype=torch.bool, device=loss.device)
        others[self.rows] = False
        if gradients[0][others].ne(0).any():
            raise WrongResult("wrong result: gradient at tokens whose loss was not summed")

    @cached_property
    def _losses(self) -> tuple[Tensor, ...]:
        """Loss and gradients of the few tokens."""
        hidden = self._precise(self.x.student_hidden[self.rows]).requires_grad_()
        weight = self._precise(self.x.student_weight).requires_grad_()
        teacher = TopK(self.x.teacher.indices[self.rows], self.x.teacher.logits[self.rows])
        loss = topk_kl_ref(hidden, weight, teacher, temperature=TEMPERATURE)
        return loss.detach(), *torch.autograd.grad(loss.sum(), (hidden, weight))

    def _close_losses(self, found: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
        for what, *pair in zip(("loss", "gradient by hidden", "gradient by head"), found, expected, strict=True):
            self._close(what, *pair)

    def _close(self, what: str, found: Tensor, expected: Tensor) -> None:
        check_close(what, found, expected, self.tolerance)


def check_close(what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raises WrongResult. `tolerance`: of the norm over all elements."""
    error = ((found.detach().to(expected.dtype) - expected).norm() / expected.norm()).item()
    if not error <= tolerance:  # also where it is NaN
        raise WrongResult(f"wrong result: {what} off by {error:.1e} of the norm, {tolerance:.0e} allowed")


def poison(device: str) -> None:
    """Fills the memory that is handed out next with NaN, so that an output which nothing has written shows."""
    if device == "cuda":
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        large = torch.full((min(free // 4, 1 << 34) // 4,), math.nan, device=device)
        small = [torch.full((1 << 17,), math.nan, device=device) for _ in range(64)]  # these have a pool of their own
        del large, small
