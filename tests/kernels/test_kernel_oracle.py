"""The loss against the worked numbers of the method, and against an oracle in numpy that shares no code with it."""

import math

import numpy as np
import pytest
import torch
from kernel_cases import FP32, WIDEST, leaves, make_case, np64, oracle_logits, oracle_loss, oracle_topk

from raft_kernels import TopK, dispatch, linear_topk, linear_topk_kl, topk_kl


def test_worked_numbers_of_eq_9():
    """Teacher .50 .30 .10 renormalises to .5556 .3333 .1111, student .20 .20 .10 to .40 .40 .20."""
    teacher = torch.tensor([[0.50, 0.30, 0.10, 0.06, 0.04]]).log()
    student = torch.tensor([[0.20, 0.20, 0.10, 0.30, 0.20]]).log()
    p = torch.tensor([0.5556, 0.3333, 0.1111])
    q = torch.tensor([0.40, 0.40, 0.20])
    one = torch.ones(1, 1)
    top = linear_topk(one, teacher.t(), 3)
    assert top.indices.tolist() == [[0, 1, 2]]
    assert torch.softmax(top.logits[0], -1).tolist() == pytest.approx(p.tolist(), abs=1e-4)
    hidden = one.clone().requires_grad_()
    weight = student.t().clone().requires_grad_()
    loss = topk_kl(hidden, weight, top, temperature=1.0)
    assert loss.item() == pytest.approx((p * (p / q).log()).sum().item(), abs=2e-4)
    loss.sum().backward()
    # T = 1 and hidden = 1: the gradient by weight row i is q_i - p_i, 0 outside the set.
    assert weight.grad[:, 0].tolist() == pytest.approx([*(q - p).tolist(), 0, 0], abs=1e-4)


def test_t2_is_the_square_of_the_temperature():
    c = make_case(4, 8, 40)
    teacher = linear_topk(*c.teacher, 6)
    raw = topk_kl(*c.student[:2], teacher, temperature=1.7, scale_by_t2=False)
    torch.testing.assert_close(topk_kl(*c.student[:2], teacher, temperature=1.7), 1.7**2 * raw)


OPTIONS = [
    {},
    {"temperature": 1.0, "scale_by_t2": False},
    {"temperature": 1.8, "teacher_temperature": 0.7},
    {"divergence": "reverse"},
    {"divergence": "jsd", "beta": 0.2},
    {"tail": "bucket"},
    {"tail": "bucket", "divergence": "reverse", "teacher_temperature": 1.1},
    {"tail": "bucket", "divergence": "jsd", "beta": 0.7, "temperature": 0.9},
]


@pytest.mark.parametrize("head", [{}, {"logit_scale": 0.6, "softcap": 3.0}], ids=["plain", "capped"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loss_and_gradients(way, head, options):
    """Values against the oracle; gradients of every parameter against its central differences."""
    n, h, v, k = 3, 4, 23, 5
    c = make_case(n, h, v, WIDEST, seed=3)
    teacher_z = oracle_logits(*map(np64, c.teacher), **head)

    def oracle(hidden, weight, bias):
        return oracle_loss(oracle_logits(hidden, weight, bias, **head), teacher_z, k, **options)

    x = leaves(c.student)
    loss = linear_topk_kl(x[0], x[1], *c.teacher, k=k, bias=x[2], **head, **options)
    np.testing.assert_allclose(np64(loss), oracle(*map(np64, c.student)), rtol=max(1e-9, FP32), atol=max(1e-11, FP32))

    upstream = np.linspace(0.5, 1.5, n)
    (loss * torch.from_numpy(upstream)).sum().backward()
    arrays, eps = [np64(t).copy() for t in c.student], 1e-5
    rng = np.random.default_rng(0)
    for array, leaf in zip(arrays, x, strict=True):
        grad = np64(leaf.grad)
        for at in rng.choice(array.size, size=min(6, array.size), replace=False):
            index = np.unravel_index(at, array.shape)
            kept, sides = array[index], []
            for step in (eps, -eps):
                array[index] = kept + step
                sides.append(float((oracle(*arrays) * upstream).sum()))
            array[index] = kept
            assert grad[index] == pytest.approx(
                (sides[0] - sides[1]) / (2 * eps), rel=max(1e-5, FP32), abs=max(1e-8, FP32)
            )


def test_gradient_is_zero_outside_the_set():
    c = make_case(5, 6, 90, WIDEST)
    x = leaves(c.student)
    teacher = linear_topk(*c.teacher, 4)
    topk_kl(x[0], x[1], teacher, bias=x[2]).sum().backward()
    outside = torch.ones(90, dtype=torch.bool)
    outside[teacher.indices.unique().long()] = False
    assert outside.any()
    assert (x[1].grad[outside] == 0).all()
    assert (x[2].grad[outside] == 0).all()
    # The softmax over the set leaves no direction in which all its logits move together.
    assert abs(x[2].grad.sum().item()) < max(1e-12, FP32)


def test_same_distributions_give_zero():
    c = make_case(6, 8, 200, WIDEST)
    for divergence in ("forward", "reverse", "jsd"):
        for tail in ("renormalize", "bucket"):
            x = leaves(c.teacher)
            loss = linear_topk_kl(*x, *c.teacher, k=10, divergence=divergence, tail=tail)
            loss.sum().backward()
            assert loss.abs().max() < max(1e-9, FP32)
            assert x[0].grad.abs().max() < max(1e-7, FP32)


def test_bucket_with_every_token_kept_equals_the_full_divergence():
    c = make_case(4, 6, 30, WIDEST)
    full = oracle_loss(*(oracle_logits(*map(np64, pair)) for pair in (c.student[:2], c.teacher)), k=30)
    for tail in ("renormalize", "bucket"):
        np.testing.assert_allclose(
            np64(linear_topk_kl(*c.student[:2], *c.teacher, k=30, tail=tail)), full, rtol=max(1e-9, FP32)
        )


def test_tokens_that_neither_model_allows_add_nothing():
    """Logits of -inf: a teacher's kept token of no mass, and a bucket in which there is nothing."""
    logits = torch.tensor([[0.3, -0.2, 0.1, -math.inf, -math.inf]], dtype=WIDEST)
    hidden = torch.ones(1, 1, dtype=WIDEST, requires_grad=True)
    weight = torch.zeros(5, 1, dtype=WIDEST)
    bias = torch.tensor([0.1, 0.4, -0.3, -math.inf, -math.inf], dtype=WIDEST)
    for k in (3, 4, 5):
        teacher = linear_topk(hidden, weight, k, bias=logits[0], log_partition_at=1.5)
        expected = oracle_loss(np64(bias)[None, :3], np64(logits)[:, :3], 3)
        for tail in ("renormalize", "bucket"):
            loss = topk_kl(hidden, weight, teacher, bias=bias, tail=tail)
            assert loss.item() == pytest.approx(expected[0], abs=max(1e-9, FP32))
            (grad,) = torch.autograd.grad(loss.sum(), hidden)
            assert torch.isfinite(grad).all()


@pytest.mark.skipif(dispatch.INTERPRETED, reason="gradcheck needs fp64, which Triton has not")
@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_gradcheck(way, tail, divergence):
    c = make_case(2, 3, 11, torch.float64, seed=1)
    teacher = linear_topk(*c.teacher, 4, log_partition_at=1.5)

    def loss(hidden, weight, bias):
        return topk_kl(hidden, weight, teacher, bias=bias, divergence=divergence, tail=tail, beta=0.3, softcap=5.0)

    assert torch.autograd.gradcheck(loss, leaves(c.student), fast_mode=False)


def test_topk_matches_the_oracle():
    c = make_case(7, 5, 83, WIDEST)
    z = oracle_logits(*map(np64, c.teacher), logit_scale=1.3, softcap=4.0)
    top = linear_topk(*c.teacher, 9, logit_scale=1.3, softcap=4.0, log_partition_at=0.8)
    ids = oracle_topk(z, 9)
    assert top.indices.tolist() == ids
    np.testing.assert_allclose(np64(top.logits), np.take_along_axis(z, np.array(ids), 1), rtol=max(1e-12, FP32))
    expected = [math.log(sum(math.exp(x / 0.8) for x in row)) for row in z]
    np.testing.assert_allclose(np64(top.log_partition), expected, rtol=max(1e-12, FP32))


def test_a_cached_teacher_without_log_partition_is_enough():
    c = make_case(4, 6, 50)
    top = linear_topk(*c.teacher, 5)
    cached = TopK(top.indices.long(), top.logits.clone())
    assert torch.equal(topk_kl(*c.student[:2], cached), topk_kl(*c.student[:2], top))
