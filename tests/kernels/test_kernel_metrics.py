"""topk_metrics against plain torch on full logits."""

import math

import pytest
import torch
from kernel_cases import make_case

from raft_kernels import TopK, linear_topk, topk_metrics
from raft_kernels.budgets import use_budgets


def entropy(p: torch.Tensor) -> torch.Tensor:
    return -(p * p.log()).sum(-1)


@pytest.mark.parametrize("budget", [1 << 24, 500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_values(dtype, budget):
    c = make_case(13, 12, 90, dtype)
    t, teacher_t, vocab = 1.3, 0.9, 84
    with use_budgets(cpu_logits=budget):
        teacher = linear_topk(*c.teacher, 8, vocab_size=vocab, log_partition_at=teacher_t)
    options = {"temperature": t, "teacher_temperature": teacher_t, "bias": c.student_bias, "softcap": 6.0}
    with use_budgets(cpu_logits=budget):
        got = topk_metrics(*c.student[:2], teacher, vocab_size=vocab, **options)
    d = c.to(torch.float64)
    student = 6 * torch.tanh((d.student_hidden @ d.student_weight.t() + d.student_bias)[:, :vocab] / 6)
    theirs = (d.teacher_hidden @ d.teacher_weight.t())[:, :vocab]
    ids = teacher.indices.long()
    q, p = torch.softmax(student / t, -1), torch.softmax(theirs / teacher_t, -1)
    expected = (
        p.gather(1, ids).sum(-1),
        q.gather(1, ids).sum(-1),
        entropy(torch.softmax(theirs.gather(1, ids) / teacher_t, -1)),
        entropy(torch.softmax(student.gather(1, ids) / t, -1)),
        (student.argmax(-1) == theirs.argmax(-1)).double(),
    )
    for name, a, b in zip(got._fields, got, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5, msg=name)
    assert 0 < got.teacher_mass.max() <= 1 + 1e-6


def test_a_model_agrees_with_itself_and_covers_all_with_every_token():
    c = make_case(9, 8, 40)
    teacher = linear_topk(*c.teacher, 40, log_partition_at=1.5)
    got = topk_metrics(*c.teacher, teacher)
    assert (got.top1_agreement == 1).all()
    torch.testing.assert_close(got.teacher_mass, torch.ones(9))
    torch.testing.assert_close(got.student_mass, torch.ones(9))
    torch.testing.assert_close(got.student_entropy, got.teacher_entropy)


def test_without_log_partition_the_teacher_mass_is_unknown():
    c = make_case(5, 8, 40)
    assert topk_metrics(*c.student[:2], linear_topk(*c.teacher, 6)).teacher_mass is None


def test_masked_tokens_and_leading_sizes():
    c = make_case(12, 8, 40)
    teacher = linear_topk(*c.teacher, 6, log_partition_at=1.5)
    clean = topk_metrics(*c.student[:2], teacher)
    mask = torch.rand(12) > 0.5
    hidden = c.student_hidden.clone()
    hidden[~mask] = math.nan
    poisoned = TopK(*(t.clone() for t in teacher))
    poisoned.indices[~mask] = -1
    poisoned.logits[~mask] = math.nan
    many = TopK(*(t.view(3, 4, *t.shape[1:]) for t in poisoned))
    got = topk_metrics(hidden.view(3, 4, 8), c.student_weight, many, mask=mask.view(3, 4))
    for a, b in zip(got, clean, strict=True):
        assert a.shape == (3, 4)
        torch.testing.assert_close(a.reshape(12)[mask], b[mask])
        assert (a.reshape(12)[~mask] == 0).all()


def test_no_gradient():
    c = make_case(5, 8, 40)
    got = topk_metrics(c.student_hidden.requires_grad_(), c.student_weight.requires_grad_(), linear_topk(*c.teacher, 6))
    assert not any(t.requires_grad for t in got if t is not None)
