"""TopKDistillationLoss: linear_topk_kl as a module that also reduces."""

import inspect
from typing import Any

from torch import Tensor, nn

from .checks import check_choice
from .linear_topk_kl import linear_topk_kl
from .topk import TopK
from .topk_kl import topk_kl

REDUCTIONS = ("mean", "sum", "none")
# The keyword arguments of both functions, without those that change from call to call.
OPTIONS = dict.fromkeys(
    name
    for function in (linear_topk_kl, topk_kl)
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.kind == inspect.Parameter.KEYWORD_ONLY and name not in ("k", "temperature", "mask")
)


class TopKDistillationLoss(nn.Module):
    """The distillation loss of Eqs. 8-10 for a student head and a teacher head, or for a teacher's kept top-K.

    `options` are those of `linear_topk_kl` and `topk_kl`. `reduction="mean"` is over the tokens whose mask is true, or
    over `num_items` where it is given: the tokens of the whole accumulated batch, so that the losses of micro-batches
    add up to its mean.
    """

    def __init__(self, k: int = 512, temperature: float = 1.5, reduction: str = "mean", **options: Any) -> None:
        super().__init__()
        check_choice("TopKDistillationLoss", "reduction", reduction, REDUCTIONS)
        unknown = sorted(options.keys() - OPTIONS)
        if unknown:
            raise TypeError(
                f"TopKDistillationLoss: unknown options {', '.join(unknown)}; there are {', '.join(OPTIONS)}"
            )
        self.k, self.temperature, self.reduction, self.options = k, temperature, reduction, options

    def forward(
        self,
        student_hidden: Tensor,  # (..., H)
        student_weight: Tensor,  # (V, H)
        teacher: Tensor | TopK,  # (..., H_teacher), or what linear_topk gave
        teacher_weight: Tensor | None = None,  # (V, H_teacher); not with a TopK
        *,
        mask: Tensor | None = None,  # (...)
        num_items: Tensor | int | None = None,
        **options: Any,
    ) -> Tensor:  # () or (...)
        options = {"temperature": self.temperature, **self.options, **options}
        if isinstance(teacher, TopK):
            if teacher_weight is not None:
                raise ValueError("TopKDistillationLoss: teacher_weight is not used with a TopK teacher; leave it out")
            loss = topk_kl(student_hidden, student_weight, teacher, mask=mask, **options)
        elif teacher_weight is None:
            raise ValueError("TopKDistillationLoss: teacher_weight is missing; only a TopK teacher goes without")
        else:
            loss = linear_topk_kl(
                student_hidden, student_weight, teacher, teacher_weight, k=self.k, mask=mask, **options
            )
        if self.reduction == "none":
            return loss
        if self.reduction == "sum":
            return loss.sum()
        if num_items is None:
            num_items = loss.numel() if mask is None else (mask != 0).sum()
        return loss.sum() / (num_items.clamp_min(1) if isinstance(num_items, Tensor) else max(num_items, 1))

    def extra_repr(self) -> str:
        pairs = {"k": self.k, "temperature": self.temperature, "reduction": self.reduction, **self.options}
        return ", ".join(f"{name}={value!r}" for name, value in pairs.items())
