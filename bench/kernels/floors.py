"""The least time that each operation of the losses needs on a machine, from its products and the bytes it must move.

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

import torch

from bench.common.limits import Ceilings
from bench.kernels.cases import Case

ID_AND_LOGIT = 8  # bytes: int32 and float32


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
