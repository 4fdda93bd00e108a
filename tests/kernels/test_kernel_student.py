"""topk_kl for users' shapes, dtypes, masks and parameters: each way to compute it gives the same loss and gradients."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import leaves, make_case

from raft_kernels import TopK, head, head_sparse, linear_topk, linear_topk_kl, topk_kl
from raft_kernels.reference import topk_kl_ref

FEW = settings(max_examples=20, deadline=None, derandomize=True)


def in_fp64(teacher: TopK) -> TopK:
    return TopK(teacher.indices, teacher.logits.double(), teacher.log_partition.double())


def run(student, teacher, loss_of=topk_kl, upstream=None, **options):
    x = leaves(student)
    loss = loss_of(x[0], x[1], teacher, bias=x[2], **options)
    loss.backward(torch.ones_like(loss) if upstream is None else upstream.to(loss.dtype))
    return [loss.detach(), *(t.grad for t in x)]


@FEW
@given(
    n=st.integers(1, 9),
    h=st.integers(1, 20),
    v=st.integers(2, 260),
    share=st.floats(0.01, 1),
    options=st.fixed_dictionaries(
        {
            "divergence": st.sampled_from(["forward", "reverse", "jsd"]),
            "tail": st.sampled_from(["renormalize", "bucket"]),
            "beta": st.floats(0.1, 0.9),
            "temperature": st.floats(0.5, 3),
            "softcap": st.none() | st.floats(2, 30),
            "logit_scale": st.floats(0.2, 2),
            "scale_by_t2": st.booleans(),
        }
    ),
)
def test_any_shape_and_options(n, h, v, share, options):
    k = max(1, int(v * share))
    c = make_case(n, h, v, torch.float64, seed=n + h + v)
    teacher = linear_topk(*c.teacher, k, log_partition_at=options["temperature"])
    # The plain-torch twin takes the bucket from 1 - mass, which has few digits left where the set holds nearly all.
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if options["tail"] == "bucket" else {"rtol": 1e-9, "atol": 1e-11}
    if k == v:
        options["tail"] = "renormalize"
    ours, twin = run(c.student, teacher, **options), run(c.student, teacher, topk_kl_ref, **options)
    for a, b in zip(ours, twin, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(123, 252, 507, 17), (41, 32, 123, 64), (30, 16, 1607, 64)], ids=str)
def test_three_way_tolerance(shape, dtype, tail):
    """|ours - fp64| <= 2 |plain torch in this dtype - fp64| + rounding of the result."""
    n, h, v, k = shape
    c = make_case(n, h, v, dtype, seed=2)
    teacher = linear_topk(*c.teacher, k, log_partition_at=1.5)
    options = {"tail": tail, "softcap": 20.0, "upstream": torch.rand(n)}
    ours = run(c.student, teacher, **options)
    plain = run(c.student, teacher, topk_kl_ref, **options)
    exact = run(c.to(torch.float64).student, in_fp64(teacher), topk_kl_ref, **options)
    for name, a, b, truth in zip(("loss", "hidden", "weight", "bias"), ours, plain, exact, strict=True):
        eps = torch.finfo(torch.float32 if name == "loss" else dtype).eps
        allowed = 2 * (b.double() - truth).abs().max() + 4 * eps * truth.abs().max()
        assert (a.double() - truth).abs().max() <= allowed, name
        assert a.dtype == (torch.float32 if name == "loss" else dtype)


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3)), ids=str)
@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_gradient_goes_where_it_is_required(way, needs, tail):
    c = make_case(5, 6, 30)
    teacher = linear_topk(*c.teacher, 7, log_partition_at=1.5)
    everything = run(c.student, teacher, tail=tail)
    x = [t.clone().requires_grad_(need) for t, need in zip(c.student, needs, strict=True)]
    loss = topk_kl(x[0], x[1], teacher, bias=x[2], tail=tail)
    assert torch.equal(loss.detach(), everything[0])
    assert loss.requires_grad == any(needs)
    if any(needs):
        loss.sum().backward()
    for t, need, expected in zip(x, needs, everything[1:], strict=True):
        assert (t.grad is not None) == need
        if need:
            assert torch.equal(t.grad, expected)


@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_masked_tokens_are_exactly_nothing(way, tail):
    n = 7
    c = make_case(n, 6, 30)
    teacher = linear_topk(*c.teacher, 5, log_partition_at=1.5)
    mask = torch.tensor([1, 0, 1, 1, 0, 1, 0], dtype=torch.bool)
    poisoned = [t.clone() for t in teacher]
    poisoned[0][~mask] = -1
    poisoned[1][~mask] = math.nan
    poisoned[2][~mask] = math.inf
    hidden = c.student_hidden.clone()
    hidden[~mask] = math.nan
    upstream = torch.rand(n).masked_fill(~mask, math.nan)
    got = run((hidden, *c.student[1:]), TopK(*poisoned), mask=mask, tail=tail, upstream=upstream)
    kept = run(
        (c.student_hidden[mask], *c.student[1:]), TopK(*(t[mask] for t in teacher)), tail=tail, upstream=upstream[mask]
    )
    assert (got[0][~mask] == 0).all() and (got[1][~mask] == 0).all()
    torch.testing.assert_close(got[0][mask], kept[0])
    torch.testing.assert_close(got[1][mask], kept[1])
    torch.testing.assert_close(got[2:], kept[2:])
    nothing = run(
        (hidden * math.nan, *c.student[1:]), TopK(*poisoned), mask=torch.zeros(n, dtype=torch.bool), tail=tail
    )
    assert all((t == 0).all() for t in nothing)


def test_mask_may_be_numbers():
    c = make_case(6, 8, 64)
    teacher = linear_topk(*c.teacher, 5)
    mask = torch.tensor([1, 0, 1, 0, 0, 1])
    assert torch.equal(topk_kl(*c.student[:2], teacher, mask=mask), topk_kl(*c.student[:2], teacher, mask=mask.bool()))


def test_leading_sizes_and_strides(way):
    c = make_case(24, 10, 40)
    teacher = linear_topk(*c.teacher, 2, log_partition_at=1.5)
    mask = torch.rand(24) > 0.3
    flat = run(c.student, teacher, mask=mask)

    def shuffled(t, last):
        return t.view(2, 3, 4, *last).transpose(0, 2).contiguous().transpose(0, 2)

    many = TopK(shuffled(teacher.indices, (2,)), shuffled(teacher.logits, (2,)), shuffled(teacher.log_partition, ()))
    student = (shuffled(c.student_hidden, (10,)), c.student_weight.t().contiguous().t(), c.student_bias)
    x = leaves(student)
    assert not x[0].is_contiguous() and not x[1].is_contiguous()
    loss = topk_kl(x[0], x[1], many, bias=x[2], mask=shuffled(mask, ()))
    assert loss.shape == (2, 3, 4)
    # An expanded upstream gradient has stride 0.
    loss.sum().backward()
    torch.testing.assert_close(loss.detach().view(24), flat[0])
    for a, b in zip((t.grad for t in x), flat[1:], strict=True):
        torch.testing.assert_close(a.reshape(b.shape), b)


@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_chunks_change_nothing(way, monkeypatch, dtype, tail):
    c = make_case(29, 12, 507, dtype)
    teacher = linear_topk(*c.teacher, 7, log_partition_at=1.5)
    options = {"tail": tail, "divergence": "jsd", "softcap": 9.0, "upstream": torch.rand(29)}
    whole = run(c.student, teacher, **options)
    monkeypatch.setattr(head, "CPU_BUDGET", 4000)
    monkeypatch.setattr(head, "CAST_BUDGET", 1000)
    monkeypatch.setattr(head_sparse, "PAIR_BUDGET", 40)
    monkeypatch.setattr(head_sparse, "TABLE_BUDGET", 600)
    parts = run(c.student, teacher, **options)
    for a, b in zip(parts, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=2 * torch.finfo(a.dtype).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_single_rows_and_dense_products_agree(monkeypatch, dtype):
    c = make_case(19, 24, 600, dtype)
    teacher = linear_topk(*c.teacher, 11, vocab_size=590)
    results = []
    for ratio in (0, 10**9):
        monkeypatch.setattr(head_sparse, "DENSE_RATIO", ratio)
        results.append(run(c.student, teacher, vocab_size=590))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=4 * torch.finfo(a.dtype).eps, atol=2e-6)
    assert (results[0][2][590:] == 0).all() and (results[1][2][590:] == 0).all()


@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_padding_of_the_heads(tail):
    """Heads padded to different sizes, as 151936 and 152064, are one vocabulary."""
    c = make_case(6, 8, 100)
    student_weight = torch.cat([c.student_weight, 50 * torch.randn(12, 8)])
    teacher_weight = torch.cat([c.teacher_weight, 50 * torch.randn(28, 8)])
    whole = linear_topk_kl(*c.student[:2], *c.teacher, k=12, tail=tail)
    padded = linear_topk_kl(
        c.student_hidden, student_weight, c.teacher_hidden, teacher_weight, k=12, tail=tail, vocab_size=100
    )
    torch.testing.assert_close(padded, whole)


def test_one_call_is_the_two_calls():
    c = make_case(9, 8, 70)
    teacher_hidden, teacher_weight = torch.randn(9, 5), torch.randn(70, 5)
    mask = torch.rand(9) > 0.4
    common = {"logit_scale": 0.7, "softcap": 6.0, "mask": mask}
    teacher = linear_topk(teacher_hidden, teacher_weight, 8, log_partition_at=2.0, **common)
    expected = topk_kl(*c.student[:2], teacher, temperature=1.3, teacher_temperature=2.0, tail="bucket", **common)
    options = {"temperature": 1.3, "teacher_temperature": 2.0, "tail": "bucket"}
    got = linear_topk_kl(*c.student[:2], teacher_hidden, teacher_weight, k=8, **options, **common)
    assert torch.equal(got, expected)
    plain = linear_topk(teacher_hidden, teacher_weight, 8, mask=mask)
    other = linear_topk_kl(
        *c.student[:2], teacher_hidden, teacher_weight, k=8, teacher_logit_scale=1.0, teacher_softcap=None, **common
    )
    assert torch.equal(other, topk_kl(*c.student[:2], plain, **common))


def test_weight_gradient_is_summed_in_fp32(way, monkeypatch):
    """4,096 equal contributions to one bf16 row: summed in bf16 they would stop growing at 256 times the first."""
    n = 4096
    hidden = torch.ones(n, 1, dtype=torch.bfloat16)
    weight = torch.zeros(64, 1, dtype=torch.bfloat16, requires_grad=True)
    teacher = TopK(torch.tensor([[3, 5]], dtype=torch.int32).expand(n, 2), torch.tensor([[1.0, -1.0]]).expand(n, 2))
    monkeypatch.setattr(head, "CPU_BUDGET", 64 * 100)
    monkeypatch.setattr(head_sparse, "PAIR_BUDGET", 200)
    p = torch.softmax(torch.tensor([1.0, -1.0]) / 1.5, 0)
    (grad,) = torch.autograd.grad(topk_kl(hidden, weight, teacher).sum(), weight)
    assert grad[3].item() == pytest.approx(n * 1.5 * (0.5 - p[0].item()), rel=1e-2)
