"""A wrong argument fails before any work, with one line that names the function, the value and what was expected."""

import re

import pytest
import torch
from kernel_cases import make_case

import raft_kernels
from raft_kernels import (
    TopK,
    TopKDistillationLoss,
    dispatch,
    linear_cross_entropy,
    linear_topk,
    linear_topk_kl,
    topk_kl,
    topk_metrics,
    use_backend,
)

C = make_case(4, 6, 30)
STUDENT, TEACHER = C.student[:2], C.teacher
TOP = linear_topk(*TEACHER, 5)
LABELS = torch.zeros(4, dtype=torch.long)

CASES = {
    "k above V": (lambda: linear_topk(*TEACHER, 31), "linear_topk: k=31 is larger than the vocabulary of 30 tokens"),
    "k above vocab_size": (
        lambda: linear_topk(*TEACHER, 21, vocab_size=20),
        "k=21 is larger than the vocabulary of 20",
    ),
    "k zero": (lambda: linear_topk(*TEACHER, 0), "linear_topk: k=0 must be at least 1"),
    "vocab_size": (lambda: linear_topk(*TEACHER, 5, vocab_size=31), "vocab_size=31 must lie in 1..30"),
    "hidden size": (lambda: linear_topk(torch.zeros(4, 5), TEACHER[1], 5), "hidden (4, 5) and weight (30, 6) differ"),
    "head not a matrix": (lambda: linear_topk(TEACHER[0], torch.zeros(6), 5), "weight must be [V, H]"),
    "bias": (lambda: linear_topk(*TEACHER, 5, bias=torch.zeros(29)), "bias must be [V] = [30], got shape (29,)"),
    "integers": (lambda: linear_topk(TEACHER[0].int(), TEACHER[1], 5), "hidden must be bfloat16, float16, float32 or"),
    "softcap": (lambda: linear_topk(*TEACHER, 5, softcap=0.0), "softcap=0.0 must be a positive number"),
    "log_partition_at": (
        lambda: linear_topk(*TEACHER, 5, log_partition_at=-1),
        "log_partition_at=-1 must be a positive",
    ),
    "mask": (
        lambda: linear_topk(*TEACHER, 5, mask=torch.ones(3, dtype=torch.bool)),
        "mask (3,) must have the leading sizes of hidden, (4,)",
    ),
    # 0 and -inf, as attention layers add them, would say the opposite.
    "additive mask": (lambda: linear_topk(*TEACHER, 5, mask=torch.zeros(4)), "mask must be bool or integers"),
    "logits first": (lambda: topk_kl(*STUDENT, TopK(TOP.logits, TOP.indices)), "TopK takes indices first, then logits"),
    "logits first in metrics": (
        lambda: topk_metrics(*STUDENT, TopK(TOP.logits, TOP.indices)),
        "teacher.indices must be",
    ),
    "skip_below": (lambda: topk_kl(*STUDENT, TOP, skip_below=1.0), "skip_below=1.0 must lie in 0..1"),
    "head for a kept teacher": (
        lambda: TopKDistillationLoss(k=5)(*STUDENT, TOP, TEACHER[1]),
        "teacher_weight is not used with a TopK teacher",
    ),
    "temperature": (lambda: topk_kl(*STUDENT, TOP, temperature=0), "topk_kl: temperature=0 must be a positive number"),
    "teacher_temperature": (
        lambda: topk_kl(*STUDENT, TOP, teacher_temperature=float("inf")),
        "teacher_temperature=inf",
    ),
    "divergence": (
        lambda: topk_kl(*STUDENT, TOP, divergence="kl"),
        "divergence='kl' is unknown; use one of forward, reverse",
    ),
    "tail": (lambda: topk_kl(*STUDENT, TOP, tail="drop"), "tail='drop' is unknown; use one of renormalize, bucket"),
    "beta": (lambda: topk_kl(*STUDENT, TOP, divergence="jsd", beta=1.0), "beta=1.0 must lie between 0 and 1"),
    "bucket": (lambda: topk_kl(*STUDENT, TOP, tail="bucket"), "tail='bucket' needs teacher.log_partition"),
    "teacher tokens": (
        lambda: topk_kl(*STUDENT, TopK(TOP.indices[:3], TOP.logits)),
        "teacher.indices (3, 5) must be (4, 5) for hidden (4, 6)",
    ),
    "teacher logits": (
        lambda: topk_kl(*STUDENT, TopK(TOP.indices, TOP.logits[:, :4])),
        "teacher.logits (4, 4) must be",
    ),
    "teacher id": (
        lambda: topk_kl(*STUDENT, TopK(TOP.indices + 30, TOP.logits)),
        "the student's ids in 0..29",
    ),
    "negative id": (lambda: topk_kl(*STUDENT, TopK(TOP.indices - 31, TOP.logits)), "teacher.indices lie in -"),
    "teacher K": (
        lambda: topk_kl(STUDENT[0], STUDENT[1][:3], TOP),
        "topk_kl: the teacher has K=5 tokens, the student's vocabulary 3",
    ),
    "heads": (
        lambda: linear_topk_kl(*STUDENT, TEACHER[0], TEACHER[1][:25], k=5),
        "the student's head has 30 rows, the teacher's 25; say with vocab_size",
    ),
    "labels": (lambda: linear_cross_entropy(*STUDENT, LABELS[:3]), "labels (3,) must have the leading sizes"),
    "label dtype": (
        lambda: linear_cross_entropy(*STUDENT, LABELS.float()),
        "labels must be integers, got torch.float32",
    ),
    "reduction": (lambda: linear_cross_entropy(*STUDENT, LABELS, reduction="avg"), "reduction='avg' is unknown"),
    "metrics": (lambda: topk_metrics(*STUDENT, TOP, temperature=-2.0), "topk_metrics: temperature=-2.0 must be"),
    "backend": (
        lambda: linear_topk(*TEACHER, 5, backend="cuda"),
        "backend='cuda' is unknown; use one of torch, triton",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_message(name):
    call, message = CASES[name]
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(dispatch.INTERPRETED, reason="Triton runs on CPU tensors in this process")
def test_triton_is_refused_where_it_cannot_run():
    with pytest.raises(ValueError, match="topk_kl: backend='triton' cannot run here: .* TRITON_INTERPRET=1"):
        topk_kl(*STUDENT, TOP, backend="triton")
    with use_backend("triton"), pytest.raises(ValueError, match="linear_topk: backend='triton'"):
        linear_topk(*TEACHER, 5)


def test_a_call_goes_before_a_preference():
    with use_backend("triton"):
        assert torch.equal(linear_topk(*TEACHER, 5, backend="torch").indices, TOP.indices)
        # Triton has no float64; a preference gives way, a call that names it is an error.
        assert linear_topk(TEACHER[0].double(), TEACHER[1].double(), 5).logits.dtype == torch.float64
        with pytest.raises(ValueError, match="it has no float64"):
            linear_topk(TEACHER[0].double(), TEACHER[1].double(), 5, backend="triton")
    assert torch.equal(linear_topk(*TEACHER, 5).indices, TOP.indices)


def test_options_of_the_module_are_checked_when_it_is_made():
    with pytest.raises(TypeError, match="unknown options temprature; there are"):
        TopKDistillationLoss(k=5, temprature=2.0)
    TopKDistillationLoss(k=5, tail="bucket", teacher_softcap=None, skip_below=1e-6, backend="torch")


def test_beta_matters_to_jsd_alone():
    assert torch.equal(topk_kl(*STUDENT, TOP, beta=0.0), topk_kl(*STUDENT, TOP))


def test_public_names():
    assert all(hasattr(raft_kernels, name) for name in raft_kernels.__all__)
