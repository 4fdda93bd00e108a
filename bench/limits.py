"""How fast it could be: what this machine does at most, and the time that each operation needs at least.

With F floating-point operations and B bytes a second, s bytes an element, and u the fraction of the vocabulary that is
in the union of the ids of 128 neighbouring tokens:

    one GEMM, hidden x head           G = 2 N H V / F
    teacher, `linear_topk`            G + 2 N V s / B + 8 N K / B
                                      the product, its logits written and read once, ids and logits kept
    a sparse product of the student,  min(G,                 dense
    [N, K] of [N, V] elements             N K H s / B,       each token reads the K rows of the head that it needs
                                          u G)               a tile of 128 tokens multiplies with the union of its rows
    student forward, `topk_kl`        one such product + 8 N K / B for ids and logits
    student full                      three of them (logits, gradient by hidden, gradient by head)
                                      + 8 N K / B + (N H + V H) s / B for writing the gradients
    `linear_topk_kl`                  teacher + student
    `linear_cross_entropy` full       3 G (logits, both gradients) + (N H + V H) s / B for writing the gradients

The teacher's is the limit of "multiply, then select": logits of a chunk that stay in the cache, or a selection inside
the GEMM, save up to 2 N V s / B of it. The union's is that of its arithmetic: tiles that run together share what they
read. A percentage of the floor says how near a provider is; one that computes another loss is held against the same
floor, since it is what a user could have instead.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.cases import Case
from bench.measure import milliseconds

ID_AND_LOGIT = 8  # bytes: int32 and float32


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
    # Normal numbers: a GPU that multiplies ones draws less power and runs faster than it ever will.
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


def itemsize(case: Case) -> int:
    return getattr(torch, case.dtype).itemsize


def gemm_s(case: Case, limit: Ceilings) -> float:
    return 2 * case.n * case.h * case.v / limit.flops


def teacher_s(case: Case, limit: Ceilings) -> float:
    moved = 2 * case.n * case.v * itemsize(case) + case.n * case.k * ID_AND_LOGIT
    return gemm_s(case, limit) + moved / limit.bandwidth


def sparse_product_s(case: Case, limit: Ceilings, union_fraction: float) -> dict[str, float]:
    """Seconds of one sparse product of the student, by algorithm."""
    gather = case.n * case.k * case.h * itemsize(case) / limit.bandwidth
    dense = gemm_s(case, limit)
    return {"dense": dense, "gather": gather, "union": union_fraction * dense}


def student_s(case: Case, limit: Ceilings, union_fraction: float, name: str) -> float:
    product = min(sparse_product_s(case, limit, union_fraction).values())
    given = case.n * case.k * ID_AND_LOGIT / limit.bandwidth
    if name == "forward":
        return product + given
    gradients = (case.n + case.v) * case.h * itemsize(case)
    return 3 * product + given + gradients / limit.bandwidth


def floor_ms(op: str, name: str, case: Case, limit: Ceilings, union_fraction: float) -> float:
    """`name` is the pass: "forward" or "full"."""
    if op == "linear_cross_entropy":
        return 1e3 * (3 * gemm_s(case, limit) + (case.n + case.v) * case.h * itemsize(case) / limit.bandwidth)
    teacher = 0.0 if op == "topk_kl" else teacher_s(case, limit)
    student = 0.0 if op == "linear_topk" else student_s(case, limit, union_fraction, name)
    return (teacher + student) * 1e3


def algorithmic_flops(op: str, name: str, case: Case) -> int:
    """What the operation needs, whatever a provider spends: 2 N H V for the teacher's logits, 2 N H K for each product
    of the student at the teacher's ids (one forward, three in the full pass), 6 N H V for cross-entropy."""
    if op == "linear_cross_entropy":
        return 6 * case.n * case.h * case.v
    teacher = 0 if op == "topk_kl" else 2 * case.n * case.h * case.v
    student = 0 if op == "linear_topk" else 2 * case.n * case.h * case.k * (1 if name == "forward" else 3)
    return teacher + student


def compulsory_bytes(op: str, name: str, case: Case) -> int:
    """Each input read once, each output written once: hidden states and head of either model, ids and logits, the
    loss, and in the full pass the gradients."""
    model = (case.n + case.v) * case.h * itemsize(case)
    kept = case.n * case.k * ID_AND_LOGIT
    loss = case.n * 4
    if op == "linear_cross_entropy":
        return 2 * model + case.n * 8 + 4
    if op == "linear_topk":
        return model + kept
    student = model * (1 if name == "forward" else 2) + loss
    return student + (kept if op == "topk_kl" else model)
