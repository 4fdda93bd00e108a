"""Checks of arguments, shared by the public functions. Messages name the function, the value and what was expected."""

import math

import torch
from torch import Tensor

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def check_linear(
    op: str,
    hidden: Tensor,  # (..., H)
    weight: Tensor,  # (V, H)
    bias: Tensor | None,  # (V,)
) -> None:
    if weight.ndim != 2 or weight.numel() == 0:
        raise ValueError(f"{op}: weight must be [V, H] with at least one row, got shape {tuple(weight.shape)}")
    if hidden.ndim < 1 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{op}: hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} differ in H, their last size"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{op}: bias must be [V] = [{weight.shape[0]}], got shape {tuple(bias.shape)}")
    for name, x in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if x is None:
            continue
        if x.dtype not in FLOATS:
            raise ValueError(f"{op}: {name} must be bfloat16, float16, float32 or float64, got {x.dtype}")
        if x.device != hidden.device:
            raise ValueError(f"{op}: {name} is on {x.device}, hidden on {hidden.device}")


def check_positive(op: str, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{op}: {name}={value!r} must be a positive number")


def check_choice(op: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{op}: {name}={value!r} is unknown; use one of {', '.join(choices)}")


def check_ids(op: str, indices: Tensor) -> None:
    if indices.is_floating_point() or indices.dtype == torch.bool:
        raise ValueError(
            f"{op}: teacher.indices must be integers, got {indices.dtype}; TopK takes indices first, then logits"
        )


def vocabulary(op: str, rows: int, vocab_size: int | None) -> int:
    """How many rows of the head are tokens: the rest is padding."""
    if vocab_size is None:
        return rows
    if not 1 <= vocab_size <= rows:
        raise ValueError(f"{op}: vocab_size={vocab_size} must lie in 1..{rows}, the rows of weight")
    return vocab_size


def flat_mask(op: str, mask: Tensor | None, hidden: Tensor) -> Tensor | None:
    """[N] bool, true where the token counts."""
    if mask is None:
        return None
    if mask.is_floating_point():
        raise ValueError(f"{op}: mask must be bool or integers, non-zero where the token counts, got {mask.dtype}")
    if mask.shape != hidden.shape[:-1]:
        raise ValueError(
            f"{op}: mask {tuple(mask.shape)} must have the leading sizes of hidden, {tuple(hidden.shape[:-1])}"
        )
    return mask.detach().reshape(-1).to(device=hidden.device, dtype=torch.bool)
