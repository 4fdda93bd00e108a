"""topk_kl for users' shapes, dtypes, masks and parameters: each way to compute it gives the same loss and gradients."""

import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import WIDEST, Case, fewer, leaves, make_case

from raft_kernels import TopK, dispatch, linear_topk, linear_topk_kl, topk_kl
from raft_kernels.budgets import use_budgets
from raft_kernels.reference import topk_kl_ref

FEW = settings(max_examples=fewer(20, 12), deadline=None, derandomize=True)


def in_fp64(teacher: TopK) -> TopK:
    return TopK(teacher.indices, teacher.logits.double(), teacher.log_partition.double())


def run(student, teacher, loss_of=topk_kl, upstream=None, **options):
    x = leaves(student)
    loss = loss_of(x[0], x[1], teacher, bias=x[2], **options)
    loss.backward(torch.ones_like(loss) if upstream is None else upstream.to(loss.dtype))
    return [loss.detach(), *(t.grad for t in x)]


@FEW
@given(
    n=st.integers(1, fewer(9, 4)),
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
    """As the plain-torch twin in fp64; Triton, which has no fp64, as the torch backend in fp32."""
    k = max(1, int(v * share))
    c = make_case(n, h, v, WIDEST, seed=n + h + v)
    teacher = linear_topk(*c.teacher, k, log_partition_at=options["temperature"])
    # The plain-torch twin takes the bucket from 1 - mass, which has few digits left where the set holds nearly all.
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if options["tail"] == "bucket" else {"rtol": 1e-9, "atol": 1e-11}
    if k == v:
        options["tail"] = "renormalize"
    twin = topk_kl_ref
    if dispatch.INTERPRETED:
        twin, tolerance = partial(topk_kl, backend="torch"), {"rtol": 1e-4, "atol": 1e-4}
    for a, b in zip(run(c.student, teacher, **options), run(c.student, teacher, twin, **options), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(123, 252, 507, 17), (41, 32, 123, 64), (30, 16, 1607, 64)], ids=str)
def test_three_way_tolerance(shape, dtype, tail):
    """|ours - fp64| <= 2 |plain torch in this dtype - fp64| + rounding of the result."""
    n, h, v, k = fewer(shape[0], 7), *shape[1:]
    c = make_case(n, h, v, dtype, seed=2)
    teacher = linear_topk(*c.teacher, k, log_partition_at=1.5)
    options = {"tail": tail, "softcap": 20.0, "upstream": torch.rand(n)}
    ours = run(c.student, teacher, **options)
    plain = run(c.student, teacher, topk_kl_ref, **options)
    exact = run(c.to(torch.float64).student, in_fp64(teacher), topk_kl_ref, **options)
    for name, a, b, truth in zip(("loss", "hidden", "weight", "bias"), ours, plain, exact, strict=True):
        # The loss is fp32, and its bucket the logarithm of a difference.
        rounding = 8 * torch.finfo(torch.float32).eps if name == "loss" else 4 * torch.finfo(dtype).eps
        allowed = 2 * (b.double() - truth).abs().max() + rounding * truth.abs().max()
        assert (a.double() - truth).abs().max() <= allowed, name
        assert a.dtype == (torch.float32 if name == "loss" else dtype)


def three_way_excess(c: Case, k: int, **options) -> dict[str, float]:
    """By how much |ours - fp64| exceeds 2 |plain torch in this dtype - fp64| + 1e-4 of the largest value; 0 passes."""
    teacher = linear_topk(*c.teacher, k)
    student = [t.requires_grad_() for t in c.student[:2]]

    def loss_and_gradients(loss_of, tensors, teacher, **options):
        loss = loss_of(*tensors, teacher, **options)
        return [loss.detach(), *torch.autograd.grad(loss.sum(), tensors)]

    exact = TopK(teacher.indices, teacher.logits.double())
    ours = loss_and_gradients(topk_kl, student, teacher, **options)
    plain = loss_and_gradients(topk_kl_ref, student, teacher)
    truth = loss_and_gradients(topk_kl_ref, leaves(t.double() for t in student), exact)
    excess = {}
    for name, a, b, t in zip(("loss", "hidden", "weight"), ours, plain, truth, strict=True):
        # The interpreter truncates gradients to bf16, which a GPU rounds: up to one step more.
        step = 2**-7 if dispatch.INTERPRETED and name != "loss" else 0.0
        allowed = 2 * (b.double() - t).abs().max() + (1e-4 + step) * t.abs().max()
        excess[name] = max(0.0, ((a.double() - t).abs().max() - allowed).item())
    return excess


@pytest.mark.parametrize("v", [32000, 50264, 128256])
def test_three_way_tolerance_of_real_vocabularies(v):
    c = make_case(fewer(24, 3), 32, v, torch.bfloat16)
    assert three_way_excess(c, 512) == {"loss": 0, "hidden": 0, "weight": 0}


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
def test_chunks_change_nothing(way, dtype, tail):
    n = fewer(29, 11)
    c = make_case(n, 12, 507, dtype)
    teacher = linear_topk(*c.teacher, 7, log_partition_at=1.5)
    options = {"tail": tail, "divergence": "jsd", "softcap": 9.0, "upstream": torch.rand(n)}
    whole = run(c.student, teacher, **options)
    with use_budgets(cpu_logits=4000, cpu_cast=1000, cpu_pairs=40, cpu_table=600):
        parts = run(c.student, teacher, **options)
    for a, b in zip(parts, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=2 * torch.finfo(a.dtype).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_single_rows_and_dense_products_agree(dtype):
    c = make_case(19, 24, 600, dtype)
    teacher = linear_topk(*c.teacher, 11, vocab_size=590)
    results = []
    for dense in (False, True):
        with dispatch.use_dense(dense):
            results.append(run(c.student, teacher, vocab_size=590, backend="torch"))
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_padding_of_the_heads_may_hold_anything(way, tail, dtype):
    c = make_case(6, 8, 100, dtype)
    padding = torch.full((28, 8), math.nan, dtype=dtype)
    student = (c.student_hidden, torch.cat([c.student_weight, padding]), torch.cat([c.student_bias, padding[:, 0]]))
    teacher = linear_topk(
        c.teacher_hidden, torch.cat([c.teacher_weight, padding]), 12, vocab_size=100, log_partition_at=1.5
    )
    whole = linear_topk(*c.teacher, 12, log_partition_at=1.5)
    assert torch.equal(teacher.indices, whole.indices)
    padded, expected = run(student, teacher, tail=tail, vocab_size=100), run(c.student, whole, tail=tail)
    for a, b in zip(padded, expected, strict=True):
        torch.testing.assert_close(a[: len(b)], b)
        assert (a[len(b) :] == 0).all()


def test_expanded_inputs(way):
    """Stride 0: one token's hidden state, or one set of ids, for all."""
    c = make_case(5, 8, 60)
    row, weight = leaves((c.student_hidden[:1], c.student_weight))
    ids, logits = torch.tensor([[3, 8, 40]], dtype=torch.int32), torch.tensor([[0.5, 0.1, -1.0]])
    results = []
    for copies in (lambda t: t.expand(5, -1), lambda t: t.repeat(5, 1)):
        loss = topk_kl(copies(row), weight, TopK(copies(ids), copies(logits)))
        results.append([loss, *torch.autograd.grad(loss.sum(), (row, weight))])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    top = linear_topk(row.expand(5, 8), c.teacher_weight, 7)
    assert torch.equal(top.indices, linear_topk(row, c.teacher_weight, 7).indices.expand(5, 7))


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


def test_weight_gradient_is_summed_in_fp32(way):
    """Equal contributions to one bf16 row: summed in bf16 they would stop growing at 256 times the first."""
    n = fewer(4096, 600)
    hidden = torch.ones(n, 1, dtype=torch.bfloat16)
    weight = torch.zeros(64, 1, dtype=torch.bfloat16, requires_grad=True)
    teacher = TopK(torch.tensor([[3, 5]], dtype=torch.int32).expand(n, 2), torch.tensor([[1.0, -1.0]]).expand(n, 2))
    p = torch.softmax(torch.tensor([1.0, -1.0]) / 1.5, 0)
    with use_budgets(cpu_logits=64 * 100, cpu_pairs=200):
        (grad,) = torch.autograd.grad(topk_kl(hidden, weight, teacher).sum(), weight)
    assert grad[3].item() == pytest.approx(n * 1.5 * (0.5 - p[0].item()), rel=1e-2)


def separate_ids(n: int, k: int) -> tuple[Case, TopK]:
    """A teacher whose tokens share no id: the bias' gradient at the ids is dloss/dz."""
    c = make_case(n, 6, n * k)
    return c, TopK(torch.randperm(n * k).view(n, k).sort(-1).values.int(), 3 * torch.randn(n, k))


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
def test_skip_below_leaves_out_what_it_says(way, divergence):
    c, teacher = separate_ids(5, 12)
    ids = teacher.indices.long()
    loss, hidden, weight, bias = run(c.student, teacher, divergence=divergence)
    size = bias[ids].abs()
    assert (size > 0).all()  # off by default
    for skip_below in (2**-9 / 12, 0.05, 0.5):
        got_loss, got_hidden, got_weight, got_bias = run(
            c.student, teacher, divergence=divergence, skip_below=skip_below
        )
        skipped = size <= skip_below * size.amax(-1, keepdim=True)
        assert not skipped.all(-1).any() and (skipped.any() or skip_below < 0.01)
        assert torch.equal(got_loss, loss)
        assert torch.equal(got_bias[ids], bias[ids].masked_fill(skipped, 0))
        assert (got_weight[ids][skipped] == 0).all()
        torch.testing.assert_close(got_weight[ids][~skipped], weight[ids][~skipped])
        bound = 12 * skip_below * size.amax(-1) * c.student_weight.abs().max()
        assert ((got_hidden - hidden).abs().amax(-1) <= bound + 1e-6).all()


def test_three_way_tolerance_with_skip_below():
    """Of peaked distributions most entries are below a 512th of what bf16 rounds the largest by, and all of them
    together below what it rounds by."""
    c = make_case(fewer(24, 3), 32, 8192, torch.bfloat16)
    c.teacher_weight *= 8
    c.student_weight.copy_(c.teacher_weight + c.student_weight / 4)
    c.student_hidden.copy_(c.teacher_hidden)
    assert three_way_excess(c, 512, skip_below=2**-9 / 512) == {"loss": 0, "hidden": 0, "weight": 0}
    teacher = linear_topk(*c.teacher, 512)
    full, got = (run(c.student, teacher, skip_below=s)[1:3] for s in (0.0, 2**-9 / 512))
    for a, b in zip(got, full, strict=True):
        assert (a - b).abs().max() <= 2**-9 * b.abs().max()
    assert (got[1] != 0).any(-1).sum() < (full[1] != 0).any(-1).sum() / 2
