"""How fast this machine can be at most: its rate of matrix products, and its bandwidth."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.common.measure import milliseconds


@dataclass(frozen=True)
class Ceilings:
    flops: float  # a second, of a large matrix product
    bandwidth: float  # bytes a second, read and written, of a large copy

    def __str__(self) -> str:
        return f"GEMM {self.flops / 1e12:.3g} TFLOP/s, copy {self.bandwidth / 1e9:.4g} GB/s"


def ceilings(device: str, dtype: torch.dtype, quick: bool = False) -> Ceilings:
    """The best of several calls each: a limit, not a typical value."""
    cuda = device == "cuda"
    side = 256 if quick else 8192 if cuda else 2048
    size = (1 << 22) if quick else (1 << 31) if cuda else (1 << 28)
    found = Ceilings(2 * side**3 / _product_s(side, device, dtype), 2 * size / _copy_s(size, device))
    if cuda:
        torch.cuda.empty_cache()  # a child that trains a model needs all there is
    return found


def _product_s(side: int, device: str, dtype: torch.dtype) -> float:
    # Normal numbers: a GPU that multiplies ones draws less power and runs faster than with real data.
    a, b, out = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
    return _seconds(lambda: torch.mm(a, b, out=out), device)


def _copy_s(size: int, device: str) -> float:
    source, target = (torch.zeros(size, device=device, dtype=torch.uint8) for _ in range(2))
    return _seconds(lambda: target.copy_(source), device)


def _seconds(call: Callable[[], object], device: str) -> float:
    for _ in range(2):
        call()
    best, until = math.inf, time.perf_counter() + 2
    for _ in range(30):
        best = min(best, milliseconds(call, device) / 1e3)
        if time.perf_counter() > until:
            break
    return best
