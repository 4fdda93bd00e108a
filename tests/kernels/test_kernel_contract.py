"""What the operators promise beside numbers: determinism, no host synchronisation, bounded memory, and that they work
under torch.compile, autocast, activation checkpointing, retain_graph and inference mode."""

import contextlib

import pytest
import torch
from kernel_cases import fewer, leaves, make_case, truncated
from torch.utils.checkpoint import checkpoint

from bench.common.measure import peak_mib
from raft_kernels import (
    TopK,
    TopKDistillationLoss,
    dispatch,
    linear_cross_entropy,
    linear_topk,
    linear_topk_kl,
    topk,
    topk_kl,
    topk_metrics,
)
from raft_kernels import cross_entropy as ce
from raft_kernels.budgets import use_budgets
from raft_kernels.divergence import topk_divergence
from raft_kernels.student.op import _student_logits, _student_logits_backward, id_lists

BACKEND = "triton" if dispatch.INTERPRETED else "torch"
TAILS = ["renormalize", "bucket"]
N, H, V, K = 11, 8, 60, 9


def gradients(loss, inputs):
    return torch.autograd.grad(loss.sum(), inputs)


def test_these_tests_run_on_the_backend_they_name():
    assert dispatch.choose_backend(None, "test", torch.device("cpu"), torch.float32) == BACKEND


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tail", TAILS)
def test_bit_equal_on_two_threads(way, tail, dtype):
    torch.set_num_threads(2)
    n = fewer(90, 12)
    c = make_case(n, 12, 700, dtype)
    labels = torch.randint(0, 700, (n,))

    def everything():
        x = leaves(c.student)
        teacher = linear_topk(*c.teacher, 20, log_partition_at=1.5)
        loss = topk_kl(x[0], x[1], teacher, bias=x[2], tail=tail)
        cross = linear_cross_entropy(x[0], x[1], labels, bias=x[2], softcap=10.0)
        return [*teacher, loss, *gradients(loss, x), cross, *gradients(cross, x)]

    with use_budgets(cpu_logits=1 << 13):
        first, second = everything(), everything()
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def poisoned_memory():
    """torch.empty gives NaN and the largest integers."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tail", TAILS)
def test_no_result_depends_on_memory_that_was_not_written(way, tail, dtype):
    c = make_case(N, H, V, dtype)
    mask = torch.arange(N) % 4 != 2
    x = leaves(c.student)
    teacher = linear_topk(*c.teacher, K, mask=mask, vocab_size=V - 3, log_partition_at=1.5)
    loss = topk_kl(x[0], x[1], teacher, bias=x[2], mask=mask, tail=tail, vocab_size=V - 3)
    metrics = topk_metrics(x[0], x[1], teacher, mask=mask, vocab_size=V - 3)
    for t in (*teacher, loss, *gradients(loss, x), *metrics):
        assert t.isfinite().all() and t.abs().max() < 1e6


@pytest.mark.parametrize("tail", TAILS)
def test_compiles_without_a_graph_break(way, tail):
    c = make_case(N, H, V)
    mask, labels = torch.rand(N) > 0.3, torch.randint(0, V, (N,))

    def losses(hidden, weight, bias):
        loss = linear_topk_kl(hidden, weight, *c.teacher, k=K, bias=bias, tail=tail, mask=mask, softcap=8.0)
        return loss.sum() + linear_cross_entropy(hidden, weight, labels, bias=bias)

    x = leaves(c.student)
    eager = losses(*x)
    torch._dynamo.reset()
    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")(*x)
    torch.testing.assert_close(compiled, eager)
    for a, b in zip(gradients(compiled, x), gradients(eager, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_compiles_for_any_number_of_tokens():
    c = make_case(30, 8, 60)
    compiled = torch.compile(
        lambda x, t: linear_topk_kl(x, c.student_weight, t, c.teacher_weight, k=9),
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    for n in (4, 11, 30):
        x = c.student_hidden[:n].clone().requires_grad_()
        loss = compiled(x, c.teacher_hidden[:n])
        expected = linear_topk_kl(x, c.student_weight, c.teacher_hidden[:n], c.teacher_weight, k=9)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradients(loss, x), gradients(expected, x))


@pytest.mark.parametrize("tail", TAILS)
def test_operators_are_well_formed(way, tail):
    """torch's own checks: schema, fake implementation, autograd registration, tracing."""
    c = make_case(N, H, V)
    settings = (1.0, 9.0, torch.float32)
    top_args = (*c.teacher, None, torch.rand(N) > 0.3, K, V, *settings, 1.5, BACKEND)
    torch.library.opcheck(topk._linear_topk, top_args)
    teacher = linear_topk(*c.teacher, K, softcap=9.0)
    rest_at = 1.5 if tail == "bucket" else None
    lists = []
    if way == "union" and rest_at is None:
        torch.library.opcheck(id_lists, (teacher.indices, torch.rand(N) > 0.3, V, torch.float32, False))
        lists = id_lists(teacher.indices, None, V, torch.float32, False)
    chosen = dispatch.choose_way(BACKEND, torch.device("cpu"), V, K, rest_at is not None)
    assert chosen == (way if rest_at is None else "dense")
    for sparse_gradient in (False, True):
        args = (
            *leaves(c.student),
            teacher.indices,
            None,
            lists,
            V,
            *settings,
            rest_at,
            BACKEND,
            chosen,
            sparse_gradient,
        )
        torch.library.opcheck(_student_logits, args)
    z = torch.randn(N, K, requires_grad=True)
    torch.library.opcheck(topk_divergence, (z, teacher.logits, None, 1.5, 1.5, "forward", 0.5, 2.25, 0.0, BACKEND))
    labels = torch.randint(0, V, (N,))
    torch.library.opcheck(ce._chunked, (*leaves(c.student), labels, 9.0, torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tail", TAILS)
def test_no_value_is_read_back_to_the_host(monkeypatch, tail, dtype):
    """Meta tensors have no values, and reading one raises: every branch, shape and loop bound is known on the host.
    Only the paths that CPU tensors alone take may look."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    n, h, v, k = 50, 16, 300, 20
    hidden, weight, bias = (torch.empty(*s, dtype=dtype, device="meta") for s in ((n, h), (v, h), (v,)))
    mask = torch.empty(n, dtype=torch.bool, device="meta")
    labels = torch.empty(n, dtype=torch.long, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        labels.max().item()
    top = topk._linear_topk._init_fn(hidden, weight, bias, mask, k, v, 0.5, 9.0, dtype, 1.5, "torch")
    indices, logits, _ = top
    rest_at = 1.5 if tail == "bucket" else None
    settings = (v, 0.5, 9.0, dtype, rest_at, "torch", "dense", False)
    z = _student_logits._init_fn(hidden, weight, bias, indices, mask, [], *settings)
    t = torch.cat([logits, logits[:, :1]], dim=1) if rest_at else logits
    _, dz = topk_divergence._init_fn(z, t, mask, 1.5, 1.5, "jsd", 0.5, 2.25, 0.1, "torch")
    needs = [True, True, True]
    grads = _student_logits_backward._init_fn(dz, z, hidden, weight, bias, indices, mask, [], needs, *settings)
    assert [g.shape for g in grads] == [hidden.shape, weight.shape, bias.shape]
    loss, partition = ce._chunked._init_fn(hidden, weight, bias, labels, 9.0, dtype)
    ce._chunked_backward._init_fn(loss, partition, hidden, weight, bias, labels, needs, 9.0, dtype)


@pytest.mark.parametrize("tail", TAILS)
def test_backward_twice(way, tail):
    c = make_case(N, H, V)
    x = leaves(c.student)
    teacher = linear_topk(*c.teacher, K, log_partition_at=1.5)
    loss = topk_kl(x[0], x[1], teacher, bias=x[2], tail=tail).mean()
    labels = torch.randint(0, V, (N,))
    for value in (loss, linear_cross_entropy(x[0], x[1], labels, bias=x[2]) * 3):
        first = torch.autograd.grad(value, x, retain_graph=True)
        for a, b in zip(first, torch.autograd.grad(value, x), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    c = make_case(9, 8, 200)
    labels = torch.randint(0, 200, (9,))

    def losses(hidden, weight):
        kl = linear_topk_kl(hidden, weight, *c.teacher, k=5)
        return kl.sum() + linear_cross_entropy(hidden, weight, labels, softcap=5.0)

    plain, saved = leaves(c.student[:2]), leaves(c.student[:2])
    losses(*plain).backward()
    checkpoint(losses, *saved, use_reentrant=reentrant).backward()
    for a, b in zip(plain, saved, strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("tail", TAILS)
def test_autocast_rounds_operands_as_a_linear_layer_does(way, tail):
    c = make_case(N, H, V)
    labels = torch.randint(0, V, (N,))
    x = leaves(c.student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_topk_kl(x[0], x[1], *c.teacher, k=K, bias=x[2], tail=tail)
        cross = linear_cross_entropy(x[0], x[1], labels, bias=x[2])
    rounded = [t.bfloat16().float() for t in (*c.student[:2], *c.teacher)]
    # In a kernel the interpreter truncates what a GPU rounds; and dloss/dy is rounded to the dtype of the operands too.
    in_kernel = way == "union" and tail == "renormalize"
    y = leaves((*(map(truncated, c.student[:2]) if in_kernel else rounded[:2]), c.student_bias))
    y_cross = leaves((*rounded[:2], c.student_bias))
    expected = linear_topk_kl(y[0], y[1], *rounded[2:], k=K, bias=y[2], tail=tail)
    expected_cross = linear_cross_entropy(y_cross[0], y_cross[1], labels, bias=y_cross[2])
    grads = [a + b for a, b in zip(gradients(expected, y), gradients(expected_cross, y_cross), strict=True)]
    assert loss.dtype == cross.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(cross, expected_cross)
    # Gradients of fp32 parameters are fp32, taken outside the autocast block as usual.
    for a, b in zip(gradients(loss.sum() + cross, x), grads, strict=True):
        assert a.dtype == torch.float32
        atol = 2**-7 * b.abs().max().item() if in_kernel else 1e-5
        torch.testing.assert_close(a, b, rtol=1e-4, atol=atol)


def test_hidden_and_head_of_different_dtypes():
    """A bf16 hidden state with an fp32 head: computed in the wider one, each gradient in its own dtype."""
    c = make_case(6, 8, 200)
    hidden = c.student_hidden.bfloat16().requires_grad_()
    weight = c.student_weight.clone().requires_grad_()
    teacher = linear_topk(c.teacher_hidden.bfloat16(), c.teacher_weight, 5)
    wide = hidden.detach().float().requires_grad_()
    loss, expected = topk_kl(hidden, weight, teacher), topk_kl(wide, weight, teacher)
    assert torch.equal(loss, expected)
    a, b = gradients(loss, (hidden, weight)), gradients(expected, (wide, weight))
    assert a[0].dtype == torch.bfloat16
    ulp = 2**-7 if dispatch.INTERPRETED else 0  # the interpreter truncates fp32 to bf16, and does not round
    torch.testing.assert_close(a[0], b[0].bfloat16(), rtol=ulp, atol=0)
    assert torch.equal(a[1], b[1])
    labels = torch.arange(6)
    torch.testing.assert_close(linear_cross_entropy(hidden, weight, labels), linear_cross_entropy(wide, weight, labels))


def test_inference_mode_and_no_grad():
    c = make_case(5, 8, 200)
    expected = linear_topk_kl(*c.student[:2], *c.teacher, k=5)
    x = leaves(c.student)
    with torch.no_grad():
        assert torch.equal(linear_topk_kl(x[0], x[1], *c.teacher, k=5), expected)
    with torch.inference_mode():
        assert torch.equal(linear_topk_kl(x[0], x[1], *c.teacher, k=5), expected)


@pytest.mark.parametrize("v", [20, 400])
@pytest.mark.parametrize("tail", TAILS)
def test_no_tokens(v, tail):
    """An empty rollout: a loss that is attached to the graph, and gradients of 0."""
    x = leaves((torch.zeros(0, 8), torch.randn(v, 8), torch.randn(v)))
    teacher = linear_topk(x[0], x[1], 6, log_partition_at=1.5)
    loss = topk_kl(x[0], x[1], teacher, bias=x[2], tail=tail)
    assert loss.shape == (0,) and loss.requires_grad
    grads = gradients(loss, x)
    assert [g.shape for g in grads] == [t.shape for t in x]
    assert all((g == 0).all() for g in grads)


@pytest.mark.skipif(dispatch.INTERPRETED, reason="the interpreter has no grid, and would take an hour")
def test_more_tokens_than_a_grid_has_rows(way):
    """N > 65,535, for backends that launch one program per token."""
    hidden = torch.randn(66_000, 2)
    x = leaves((torch.randn(66_000, 2), torch.randn(9, 2)))
    loss = topk_kl(*x, linear_topk(hidden, x[1], 3))
    (grad,) = gradients(loss, x[:1])
    last = topk_kl(x[0][-5:], x[1], linear_topk(hidden[-5:], x[1], 3))
    torch.testing.assert_close(loss[-5:], last)
    torch.testing.assert_close(grad[-5:], gradients(last, x[:1])[0][-5:])


def test_second_order_is_refused():
    c = make_case(4, 8, 60)
    x = leaves(c.student)
    loss = linear_topk_kl(x[0], x[1], *c.teacher, k=5)
    (grad,) = torch.autograd.grad(loss.sum(), x[0], create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


@pytest.mark.skipif(dispatch.INTERPRETED, reason="a GPU's workspaces are measured on a GPU: test_gpu.py")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tail", TAILS)
def test_memory_does_not_grow_with_tokens_times_vocabulary(way, tail, dtype):
    """From 50 to 400 tokens the [N, V] logits would grow by 10.7 MiB, and hold 12.2 MiB. Memory may grow with what is
    kept per (token, id): the teacher's ids and logits, dloss/dy, and a few temporaries of that size."""
    budgets = {
        "cpu_logits": 1 << 16,
        "cpu_cast": 1 << 12,
        "cpu_table": 1 << 14,
        "cpu_pairs": 1 << 12,
        "cpu_cache": 1 << 12,
    }
    v, h, k = 8000, 4, 8

    def peak(n):
        c = make_case(n, h, v, dtype)
        x = leaves(c.student)
        labels = torch.zeros(n, dtype=torch.long)

        def call():
            loss = linear_topk_kl(x[0], x[1], *c.teacher, k=k, bias=x[2], tail=tail)
            return gradients(loss, x), gradients(linear_cross_entropy(x[0], x[1], labels, softcap=9.0), x[:2])

        call()
        return peak_mib(call, "cpu")

    with use_budgets(**budgets, cross_entropy_tokens=1):
        few, many = peak(50), peak(400)
    assert many - few < 10 * 350 * k * 4 / 2**20
    assert many < 3


def test_memory_of_a_frozen_head():
    """No weight gradient is allocated when the head does not require one."""
    c = make_case(fewer(16, 4), 128, 20000)
    teacher = linear_topk(*c.teacher, 8)
    hidden = c.student_hidden.clone().requires_grad_()

    def call():
        return gradients(topk_kl(hidden, c.student_weight, teacher), (hidden,))

    call()
    assert peak_mib(call, "cpu") < c.student_weight.numel() * 4 / 2**20 / 10


def test_metrics_and_module_run_compiled():
    c = make_case(6, 8, 60)
    module = TopKDistillationLoss(k=5, tail="bucket")
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*c.student[:2], *c.teacher), module(*c.student[:2], *c.teacher))
    teacher = linear_topk(*c.teacher, 5, log_partition_at=1.5)
    measured = torch.compile(
        lambda h, w, i, t, p: topk_metrics(h, w, TopK(i, t, p)), fullgraph=True, backend="aot_eager"
    )
    for a, b in zip(measured(*c.student[:2], *teacher), topk_metrics(*c.student[:2], teacher), strict=True):
        torch.testing.assert_close(a, b)
