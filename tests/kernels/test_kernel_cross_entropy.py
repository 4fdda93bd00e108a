"""linear_cross_entropy against F.cross_entropy on materialised logits, through every provider that runs here."""

import math
import os
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import leaves, make_case

from raft_kernels import cross_entropy as ce
from raft_kernels import linear_cross_entropy
from raft_kernels.budgets import Budgets, use_budgets

PROVIDERS = ["forward", "recompute"]


def expected_loss(hidden, weight, labels, bias=None, softcap=None, **options):
    z = F.linear(hidden, weight, bias)
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    loss = F.cross_entropy(z.flatten(0, -2), labels.flatten(), **options)
    return loss.view(labels.shape) if options.get("reduction") == "none" else loss


def labels_of(n: int, v: int, ignore_index: int = -100) -> torch.Tensor:
    labels = torch.randint(0, v, (n,), generator=torch.Generator().manual_seed(n))
    labels[::4] = ignore_index
    return labels


@pytest.fixture(params=PROVIDERS)
def provider(request, monkeypatch):
    """ "forward" has no way for reduction="none"."""
    real = ce.choose_provider
    chosen = {"forward": real, "recompute": lambda *_: "recompute"}[request.param]
    monkeypatch.setattr(ce, "choose_provider", chosen)
    return request.param


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("ignore_index", [-100, 7])
def test_all_options(provider, reduction, with_bias, softcap, ignore_index):
    c = make_case(23, 12, 57, torch.float64)
    labels = labels_of(23, 57, ignore_index)
    options = {"reduction": reduction, "softcap": softcap, "ignore_index": ignore_index}
    results = []
    for function in (linear_cross_entropy, expected_loss):
        x = leaves(c.student)
        loss = function(x[0], x[1], labels, bias=x[2] if with_bias else None, **options)
        upstream = torch.linspace(0.5, 2, loss.numel(), dtype=torch.float64).view(loss.shape)
        loss.backward(upstream)
        results.append([loss, *(t.grad for t in x[: 3 if with_bias else 2])])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(123, 252, 507), (33, 16, 123)], ids=str)
def test_three_way_tolerance(dtype, shape):
    n, h, v = shape
    c, labels = make_case(n, h, v, dtype), labels_of(n, v)
    results = []
    for function, case in (
        (linear_cross_entropy, c),
        (expected_loss, c),
        (expected_loss, c.to(torch.float64)),
    ):
        x = leaves(case.student)
        loss = function(x[0], x[1], labels, bias=x[2])
        loss.backward()
        results.append([loss.detach(), *(t.grad for t in x)])
    for name, a, b, truth in zip(("loss", "hidden", "weight", "bias"), *results, strict=True):
        eps = torch.finfo(torch.float32 if name == "loss" else dtype).eps
        allowed = 2 * (b.double() - truth).abs().max() + 4 * eps * truth.abs().max()
        assert (a.double() - truth).abs().max() <= allowed, name
    assert results[0][0].dtype == torch.float32


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_labels_ignored_is_an_attached_zero(provider, reduction):
    c = make_case(6, 8, 30)
    x = leaves(c.student)
    loss = linear_cross_entropy(x[0], x[1], torch.full((6,), -100), bias=x[2], reduction=reduction)
    assert (loss == 0).all() and loss.requires_grad
    loss.sum().backward()
    assert all((t.grad == 0).all() for t in x)


def test_no_tokens_at_all(provider):
    x = leaves((torch.zeros(0, 8), torch.randn(30, 8)))
    loss = linear_cross_entropy(*x, torch.zeros(0, dtype=torch.long))
    assert loss.item() == 0
    loss.backward()
    assert (x[1].grad == 0).all()


def test_ignored_positions_hold_anything(provider):
    c, labels = make_case(12, 8, 30), labels_of(12, 30)
    kept = labels != -100
    hidden = c.student_hidden.clone()
    hidden[~kept] = math.nan
    x, y = leaves((hidden, *c.student[1:])), leaves((c.student_hidden[kept], *c.student[1:]))
    loss, clean = (
        linear_cross_entropy(x[0], x[1], labels, bias=x[2]),
        linear_cross_entropy(y[0], y[1], labels[kept], bias=y[2]),
    )
    loss.backward()
    clean.backward()
    torch.testing.assert_close(loss, clean)
    assert (x[0].grad[~kept] == 0).all()
    torch.testing.assert_close(x[0].grad[kept], y[0].grad)
    torch.testing.assert_close([x[1].grad, x[2].grad], [y[1].grad, y[2].grad])


def test_leading_sizes_and_frozen_head(provider):
    c, labels = make_case(24, 8, 30), labels_of(24, 30).view(2, 3, 4)
    hidden = c.student_hidden.view(2, 3, 4, 8).clone().requires_grad_()
    per_token = linear_cross_entropy(hidden, c.student_weight, labels, reduction="none")
    assert per_token.shape == (2, 3, 4)
    torch.testing.assert_close(per_token, expected_loss(hidden, c.student_weight, labels, reduction="none"))
    linear_cross_entropy(hidden, c.student_weight, labels.int()).backward()
    frozen = hidden.grad.clone()
    weight = c.student_weight.clone().requires_grad_()
    linear_cross_entropy(hidden.detach(), weight, labels).backward()
    x = leaves((c.student_hidden, c.student_weight))
    expected_loss(*x, labels.flatten()).backward()
    torch.testing.assert_close(frozen.view(24, 8), x[0].grad)
    torch.testing.assert_close(weight.grad, x[1].grad)


def test_chunks_change_nothing():
    for dtype in (torch.float32, torch.bfloat16):
        c, labels = make_case(29, 12, 507, dtype), labels_of(29, 507)
        results = []
        for budget in (1 << 24, 2000):
            x = leaves(c.student)
            with use_budgets(cpu_logits=budget, cpu_cast=budget, cross_entropy_tokens=1):
                loss = linear_cross_entropy(x[0], x[1], labels, bias=x[2], softcap=9.0)
                loss.backward()
            results.append([loss.detach(), *(t.grad for t in x)])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=2 * torch.finfo(a.dtype).eps, atol=1e-6)


def test_gradcheck():
    c, labels = make_case(4, 3, 9, torch.float64), labels_of(4, 9)

    def loss(hidden, weight, bias):
        return linear_cross_entropy(hidden, weight, labels, bias=bias, softcap=3.0, reduction="none")

    assert torch.autograd.gradcheck(loss, leaves(c.student))


def test_choice_of_provider():
    hidden, weight, bias = make_case(4, 8, 30).student
    assert ce.choose_provider(hidden, weight, bias, "mean") == "recompute"  # nothing has a gradient
    for leaf in (hidden, weight, bias):
        leaf.requires_grad_()
        for reduction, expected in (("mean", "forward"), ("sum", "forward"), ("none", "recompute")):
            assert ce.choose_provider(hidden, weight, bias, reduction) == expected
            with torch.no_grad():
                assert ce.choose_provider(hidden, weight, bias, reduction) == "recompute"
        leaf.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_graph_can_be_used_twice(monkeypatch, dtype):
    """The gradients of the forward pass are given away; the second time they are made again, to the same bits."""
    made = []
    real = ce._sum_and_gradients
    monkeypatch.setattr(ce, "_sum_and_gradients", lambda *args: made.append(1) or real(*args))
    c, labels = make_case(29, 12, 507, dtype), labels_of(29, 507)
    x = leaves(c.student)
    with use_budgets(cpu_logits=2000, cpu_cache=1000, cross_entropy_tokens=1):
        loss = linear_cross_entropy(x[0], x[1], labels, bias=x[2], softcap=9.0) * 3
        assert len(made) == 1
        first = torch.autograd.grad(loss, x, retain_graph=True)
        kept = [g.clone() for g in first]
        assert len(made) == 1
        second = torch.autograd.grad(loss, x)
    assert len(made) == 2
    for a, before, b in zip(first, kept, second, strict=True):
        assert torch.equal(a, before) and torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr()


def test_gradients_below_the_range_of_fp16_reach_a_loss_scaler():
    """A gradient of 2**-30 is 0 in fp16; scaled by 2**16 before it is rounded, it is not."""
    hidden, weight = torch.zeros(1, 2, dtype=torch.float16), torch.zeros(4, 2, dtype=torch.float16)
    weight[:, 0] = torch.tensor([2.0**-14, 0, 0, 0])
    weight[0, 1] = 2.0**-24
    x = leaves((hidden, weight))
    loss = linear_cross_entropy(*x, torch.tensor([0]), reduction="sum")
    (loss * 2.0**16).backward()
    # (q_0 - 1) w_0 + sum of q_v w_v with q = 1/4: -3/4 of the weight's.
    torch.testing.assert_close(x[0].grad, torch.tensor([[-3.0, -0.75 * 2**-8]], dtype=torch.float16))


def test_no_second_derivative():
    c, labels = make_case(4, 3, 9), labels_of(4, 9)
    x = leaves(c.student)
    loss = linear_cross_entropy(x[0], x[1], labels, bias=x[2])
    (grad,) = torch.autograd.grad(loss, x[0], create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2), (0, 1, 2)], ids=str)
def test_each_combination_of_gradients(needed):
    c, labels = make_case(23, 12, 57, torch.float64), labels_of(23, 57)
    results = []
    for function in (linear_cross_entropy, expected_loss):
        x = [t.detach().clone().requires_grad_(i in needed) for i, t in enumerate(c.student)]
        function(x[0], x[1], labels, bias=x[2]).backward()
        assert [t.grad is not None for t in x] == [i in needed for i in range(3)]
        results.append([t.grad for t in x if t.grad is not None])
    torch.testing.assert_close(*results)


def test_ignored_positions_cost_nothing_on_a_cpu(monkeypatch):
    """Prompts, say: only positions with a label go through the head."""
    seen = []
    real = ce._sum_and_gradients
    monkeypatch.setattr(ce, "_sum_and_gradients", lambda hidden, *args: seen.append(len(hidden)) or real(hidden, *args))
    c, labels = make_case(24, 8, 30), torch.full((24,), -100)
    labels[5], labels[20] = 3, 29
    x = leaves(c.student)
    linear_cross_entropy(x[0], x[1], labels, bias=x[2]).backward()
    assert seen == [2] and (x[0].grad[labels == -100] == 0).all() and (x[0].grad[5] != 0).any()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_way_of_a_gpu_keeps_ignored_positions_out(monkeypatch, reduction):
    """There nothing may be looked at: positions stay, with weight 0, whatever they hold."""
    monkeypatch.setattr(ce, "may_look", lambda x: False)
    c, labels = make_case(24, 8, 30, torch.float64), labels_of(24, 30)
    kept = labels != -100
    hidden = c.student_hidden.clone()
    hidden[~kept] = math.nan
    x, y = leaves((hidden, *c.student[1:])), leaves((c.student_hidden[kept], *c.student[1:]))
    loss = linear_cross_entropy(x[0], x[1], labels, bias=x[2], softcap=5.0, reduction=reduction)
    expected = expected_loss(y[0], y[1], labels[kept], bias=y[2], softcap=5.0, reduction=reduction)
    torch.testing.assert_close(loss, expected)
    found, exact = torch.autograd.grad(loss, x), torch.autograd.grad(expected, y)
    assert (found[0][~kept] == 0).all()
    torch.testing.assert_close([found[0][kept], *found[1:]], list(exact))


def test_gradients_of_the_forward_pass_under_autocast():
    c, labels = make_case(23, 12, 57), labels_of(23, 57)
    x = leaves(c.student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(x[0], x[1], labels, bias=x[2])
    rounded = [t.detach().bfloat16().double().requires_grad_() for t in c.student[:2]]
    bias = c.student_bias.double().requires_grad_()
    exact = expected_loss(*rounded, labels, bias=bias)
    assert loss.dtype == torch.float32 and abs(loss - exact) < 1e-3
    grads = torch.autograd.grad(loss, x)
    for a, b in zip(grads, torch.autograd.grad(exact, [*rounded, bias]), strict=True):
        assert a.dtype == torch.float32 and (a - b).abs().max() <= 2**-7 * b.abs().max()


def test_memory_is_one_chunk_beyond_the_gradients():
    from bench.common.measure import peak_mib

    n, h, v = 512, 16, 8192
    x = leaves(tuple(make_case(n, h, v).student[:2]))
    labels = torch.randint(0, v, (n,))

    def call():
        return torch.autograd.grad(linear_cross_entropy(*x, labels), x)

    gradients = (n * h + v * h) * 4 / 2**20
    chunk, cached = (1 << 18) * 4 / 2**20, Budgets().cpu_cache * 4 / 2**20
    with use_budgets(cpu_logits=1 << 18, cross_entropy_tokens=1):
        peak = peak_mib(call, "cpu")
    assert peak <= gradients + chunk + 2 * min(cached, chunk) + 0.3  # all logits: 16 MiB


@pytest.mark.slow
def test_liger_provider_in_the_interpreter():
    """Liger's kernels on CPU tensors, in a process of its own: the interpreter is chosen when triton is imported.
    Without a soft-cap, which Liger 0.8.5 hands to the interpreter as a Python float that its kernel cannot cast."""
    pytest.importorskip("liger_kernel")
    pytest.importorskip("triton")
    script = """
    import torch
    import torch.nn.functional as F
    from raft_kernels import cross_entropy as ce, linear_cross_entropy

    ce.choose_provider = lambda *args: "liger"
    torch.manual_seed(0)
    labels = torch.tensor([3, -100, 0, 16])
    for reduction in ("mean", "sum", "none"):
        x = [torch.randn(4, 8), torch.randn(17, 8), torch.randn(17)]
        x = [t.requires_grad_() for t in x]
        loss = linear_cross_entropy(x[0], x[1], labels, bias=x[2], reduction=reduction)
        grads = torch.autograd.grad(loss.sum(), x)
        expected = F.cross_entropy(F.linear(*x), labels, reduction=reduction)
        torch.testing.assert_close(loss, expected)
        for a, b in zip(grads, torch.autograd.grad(expected.sum(), x)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    nothing = linear_cross_entropy(x[0], x[1], torch.full((4,), -100))
    assert nothing.item() == 0 and (torch.autograd.grad(nothing, x[1])[0] == 0).all()
    """
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
