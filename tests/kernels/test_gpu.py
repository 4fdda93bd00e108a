"""The Triton backend on a GPU, at sizes of models. Runs with torch, triton, numpy and pytest alone, from the root of a
checkout: python3 -m pytest tests/kernels/test_gpu.py"""

import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from kernel_cases import KINDS, adversarial, leaves, selection, sorted_topk
from torch import Tensor

from bench.common.measure import peak_mib
from raft_kernels import TopK, dispatch, linear_topk, linear_topk_kl, topk_kl, topk_metrics
from raft_kernels.reference import topk_kl_ref

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def free_memory():
    yield
    torch.cuda.empty_cache()


def need_memory(gib: float) -> None:
    total = torch.cuda.get_device_properties(0).total_memory / 2**30
    if total < gib:
        pytest.skip(f"needs a GPU with {gib} GiB, this one has {total:.0f}")


@dataclass
class Case:
    n: int
    h: int
    v: int
    k: int
    dtype: torch.dtype

    def tensors(self, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
        """Hidden states and head of a student and of a teacher that is near it; logits have a deviation of 2."""
        g = torch.Generator(DEVICE).manual_seed(seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, device=DEVICE)

        hidden, weight = randn(self.n, self.h), randn(self.v, self.h) * (2 / math.sqrt(self.h))
        teacher = [hidden + 0.3 * randn(self.n, self.h), weight]
        return [hidden.to(self.dtype), weight.to(self.dtype)], [t.to(self.dtype) for t in teacher]


LLAMA = Case(2048, 2048, 128256, 512, BF16)


def loss_and_gradients(loss_of, tensors: list[Tensor], teacher: TopK, **options) -> list[Tensor]:
    x = leaves(tensors)
    loss = loss_of(x[0], x[1], teacher, bias=x[2] if len(x) > 2 else None, **options)
    return [loss.detach(), *torch.autograd.grad(loss.sum(), x)]


def test_triton_is_the_choice_here():
    assert dispatch.choose_backend(None, "test", torch.device(DEVICE), BF16) == "triton"


# numbers


@pytest.mark.parametrize(
    "case, options",
    [
        (LLAMA, {}),
        (Case(2048, 2048, 128256, 64, BF16), {"divergence": "reverse"}),
        (Case(1024, 2048, 128256, 1024, BF16), {"divergence": "jsd", "softcap": 20.0}),
        (Case(2048, 2048, 151936, 512, BF16), {"vocab_size": 151643, "logit_scale": 0.7}),
        (Case(512, 1024, 128256, 512, BF16), {"tail": "bucket"}),
        (Case(1000, 1024, 50257, 512, FP16), {}),
        (Case(257, 251, 32000, 100, BF16), {}),  # sizes that no tile divides, rows of no 16 bytes
        (Case(300, 252, 8001, 64, FP32), {}),
    ],
    ids=str,
)
def test_three_way_tolerance(case, options):
    """|ours - fp64| <= 2 |plain torch in this dtype - fp64| + 1e-4 of the largest value."""
    need_memory(40)
    student, teacher_tensors = case.tensors()
    vocab = options.get("vocab_size")
    if vocab is not None:
        student[1][vocab:] = math.nan
        teacher_tensors[1][vocab:] = math.nan
    bias = torch.randn(case.v, device=DEVICE).to(case.dtype)
    teacher = linear_topk(*teacher_tensors, case.k, vocab_size=vocab, log_partition_at=1.5)
    ours = loss_and_gradients(topk_kl, [*student, bias], teacher, **options)
    # The twins multiply the whole head, in which NaN would reach the gradient of the hidden states.
    student[1][vocab or case.v :] = 0
    plain = loss_and_gradients(topk_kl_ref, [*student, bias], teacher, **options)
    exact_teacher = TopK(teacher.indices, teacher.logits.double(), teacher.log_partition.double())
    truth = loss_and_gradients(topk_kl_ref, [t.double() for t in (*student, bias)], exact_teacher, **options)
    for name, a, b, t in zip(("loss", "hidden", "weight", "bias"), ours, plain, truth, strict=True):
        allowed = 2 * (b.double() - t).abs().max() + 1e-4 * t.abs().max()
        assert (a.double() - t).abs().max() <= allowed, name
        assert a.dtype == (FP32 if name == "loss" else case.dtype)


@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_fp32_tensors_under_autocast(dtype, tail):
    case = Case(700, 512, 32000, 128, FP32)
    student, teacher = case.tensors()
    kept = linear_topk(*teacher, case.k, log_partition_at=1.5)
    with torch.autocast(DEVICE, dtype=dtype):
        ours = loss_and_gradients(topk_kl, student, kept, tail=tail)
    rounded = [t.to(dtype).double() for t in student]
    truth = loss_and_gradients(topk_kl_ref, rounded, TopK(*(t.double() for t in kept)), tail=tail)
    for a, t in zip(ours, truth, strict=True):
        assert a.dtype == FP32
        assert (a - t).abs().max() <= 2 * torch.finfo(dtype).eps * t.abs().max()
    assert (ours[0] - truth[0]).abs().max() <= 1e-4 * truth[0].abs().max()


@pytest.mark.parametrize(
    "case",
    [
        Case(66_000, 64, 40_000, 64, BF16),  # N > 65,535 and N*V > 2**31
        Case(64, 8320, 262_144, 32, BF16),  # V*H > 2**31
    ],
    ids=str,
)
def test_sizes_beyond_32_bits(case):
    need_memory(60)
    student, teacher_tensors = case.tensors()
    teacher = linear_topk(*teacher_tensors, case.k)
    by_torch = linear_topk(*teacher_tensors, case.k, backend="torch")
    # Another product sums in another order: where ids differ, logits are equal but for rounding.
    torch.testing.assert_close(teacher.logits.sort(-1).values, by_torch.logits.sort(-1).values, rtol=1e-4, atol=1e-4)
    ours = loss_and_gradients(topk_kl, student, teacher)
    expected = loss_and_gradients(topk_kl, student, teacher, backend="torch")
    torch.testing.assert_close(ours[0], expected[0], rtol=1e-4, atol=1e-4)
    for a, b in zip(ours[1:], expected[1:], strict=True):
        assert (a.float() - b.float()).abs().max() <= 2**-7 * b.float().abs().max()


# exactness of selection


@pytest.fixture
def checked_selection(monkeypatch):
    """Holds each selection against a stable sort of the very logits it was made from. Returns the names of the ways."""
    from raft_kernels.gpu import select

    ways = []
    top_k, choose = select.top_k, select.choose

    def checked_top_k(z, vocab, log_partition_at, ids, logits):
        log_partition = top_k(z, vocab, log_partition_at, ids, logits)
        ways.append("top_k")
        check(z, vocab, ids, logits)
        return log_partition

    def checked_choose(z, maxima, vocab, g, ids, logits):
        choose(z, maxima, vocab, g, ids, logits)
        ways.append("choose")
        check(z, vocab, ids, logits)

    def check(z, vocab, ids, logits):
        assert torch.equal(ids.long(), sorted_topk(z[:, :vocab], ids.shape[1]))
        assert torch.equal(logits, z.gather(1, ids.long()))

    monkeypatch.setattr(select, "top_k", checked_top_k)
    monkeypatch.setattr(select, "choose", checked_choose)
    return ways


@pytest.mark.parametrize("k", [1, 64, 512, 1024, 5000])
@pytest.mark.parametrize("v, vocab", [(128256, None), (151936, 151643), (50257, None)])
def test_top_k_is_a_stable_sort(checked_selection, v, vocab, k):
    _, teacher = Case(1500, 256, v, k, BF16).tensors()
    top = linear_topk(*teacher, k, vocab_size=vocab, log_partition_at=1.5)
    assert "top_k" in checked_selection
    z = (teacher[0].float() @ teacher[1].float().t())[:, :vocab]
    torch.testing.assert_close(top.logits, z.gather(1, top.indices.long()), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(top.log_partition, torch.logsumexp(z / 1.5, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_adversarial_rows(kind):
    for v, k in ((1101, 1), (1101, 17), (1101, 512), (1101, 1101), (128256, 512), (70000, 20000)):
        z = adversarial(kind, 3, v).to(DEVICE)
        ids, log_partition = selection(z, v, k, 1.5)
        assert torch.equal(ids.long(), sorted_topk(z, k)), (v, k)
        torch.testing.assert_close(log_partition, torch.logsumexp(z / 1.5, -1), rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("options", [{}, {"bias": True, "logit_scale": 0.5}, {"vocab_size": 128000}], ids=str)
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_fused_product(checked_selection, dtype, options):
    from raft_kernels.gpu.tiles import use_tiles

    if torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("needs the tensor memory accelerator of capability 9.0")
    _, teacher = Case(1000, 512, 128256, 512, dtype).tensors()
    if "bias" in options:
        options = {**options, "bias": torch.randn(128256, device=DEVICE).to(dtype)}
    with use_tiles(fused=False):
        plain = linear_topk(*teacher, 512, **options)
    checked_selection.clear()
    with use_tiles(fused=True):
        fused = linear_topk(*teacher, 512, **options)
    assert set(checked_selection) == {"choose"}
    torch.testing.assert_close(fused.logits.sort(-1).values, plain.logits.sort(-1).values, rtol=1e-4, atol=1e-4)


# contract


@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_bit_equal_over_three_runs(dtype, tail):
    case = Case(2048, 1024, 128256, 512, dtype)
    student, teacher = case.tensors()

    def everything():
        kept = linear_topk(*teacher, case.k, log_partition_at=1.5)
        return [*kept, *loss_and_gradients(topk_kl, student, kept, tail=tail)]

    first = everything()
    for _ in range(2):
        for a, b in zip(everything(), first, strict=True):
            assert torch.equal(a, b)


def test_peak_memory():
    """Gradients, the teacher's top-K and workspaces together; the [N, V] logits would take 4 GiB in fp32."""
    need_memory(20)

    def peak(n):
        student, teacher = Case(n, 4096, 128256, 512, BF16).tensors()
        x = leaves(student)
        del student

        def call():
            return torch.autograd.grad(linear_topk_kl(*x, *teacher, k=512).sum(), x)

        call()
        return peak_mib(call, DEVICE)

    once, twice = peak(8192), peak(16384)
    assert once <= 2.1 * 1024
    # 64 KiB for each more token: its gradient and what is kept of it per id. Its logits would take 501.
    assert twice - once <= 8192 * 64 / 1024


def test_a_frozen_head_takes_no_memory_for_its_gradient():
    student, teacher = Case(1024, 4096, 128256, 64, BF16).tensors()
    kept, hidden = linear_topk(*teacher, 64), student[0].requires_grad_()

    def call():
        return torch.autograd.grad(topk_kl(hidden, student[1], kept).sum(), hidden)

    call()
    assert peak_mib(call, DEVICE) < 300  # the gradient alone would take 1,002


@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_no_host_synchronisation(dtype, tail):
    case = Case(300, 256, 32000, 64, dtype)
    student, teacher = case.tensors()
    x, mask = leaves([*student, student[1][:, 0]]), torch.rand(case.n, device=DEVICE) > 0.2

    def everything():
        kept = linear_topk(*teacher, case.k, mask=mask, softcap=20.0, log_partition_at=1.5)
        topk_metrics(x[0], x[1], kept, mask=mask)
        loss = topk_kl(x[0], x[1], kept, bias=x[2], mask=mask, softcap=20.0, tail=tail, skip_below=1e-6)
        return torch.autograd.grad(loss.sum(), x)

    everything()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            mask.sum().item()
        everything()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_masked_tokens_are_exactly_nothing(tail):
    case = Case(500, 256, 32000, 64, BF16)
    student, teacher = case.tensors()
    mask = torch.arange(case.n, device=DEVICE) % 3 != 1
    clean = linear_topk(*(t[mask] if len(t) == case.n else t for t in teacher), case.k, log_partition_at=1.5)
    expected = loss_and_gradients(topk_kl, [student[0][mask], student[1]], clean, tail=tail)
    student[0][~mask] = teacher[0][~mask] = math.nan
    kept = linear_topk(*teacher, case.k, mask=mask, log_partition_at=1.5)
    for t in kept:
        t[~mask] = -1 if t.dtype == torch.int32 else math.nan
    loss, hidden, weight = loss_and_gradients(topk_kl, student, kept, mask=mask, tail=tail)
    assert (loss[~mask] == 0).all() and (hidden[~mask] == 0).all()
    torch.testing.assert_close(loss[mask], expected[0], rtol=1e-4, atol=1e-4)
    for a, b in ((hidden[mask], expected[1]), (weight, expected[2])):
        assert (a.float() - b.float()).abs().max() <= 2**-7 * b.float().abs().max()


@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_compiles_without_a_graph_break(tail):
    case = Case(512, 256, 32000, 64, BF16)
    student, teacher = case.tensors()

    def loss(hidden, weight):
        return linear_topk_kl(hidden, weight, *teacher, k=64, tail=tail).sum() * 2

    x = leaves(student)
    torch._dynamo.reset()
    eager, compiled = loss(*x), torch.compile(loss, fullgraph=True)(*x)
    torch.testing.assert_close(compiled, eager)
    for a, b in zip(torch.autograd.grad(compiled, x), torch.autograd.grad(eager, x), strict=True):
        torch.testing.assert_close(a, b, rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_runs_in_a_cuda_graph(tail):
    case = Case(512, 256, 32000, 64, BF16)
    student, teacher = case.tensors()
    x = leaves(student)

    def step():
        loss = linear_topk_kl(*x, *teacher, k=64, tail=tail)
        return [loss.detach(), *torch.autograd.grad(loss.sum(), x)]

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # kernels are compiled and loaded before the capture
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step()
    with torch.no_grad():
        for kept, other in zip((x, teacher), case.tensors(seed=1), strict=True):
            for a, b in zip(kept, other, strict=True):
                a.copy_(b)
    graph.replay()
    for a, b in zip(recorded, step(), strict=True):
        assert torch.equal(a, b)


def test_tensors_of_another_gpu():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    student, teacher = Case(64, 64, 8000, 32, BF16).tensors()
    here, there = ([t.to(f"cuda:{i}") for t in (*student, *teacher)] for i in (0, 1))
    losses = []
    for tensors in (here, there):
        x = leaves(tensors[:2])
        loss = linear_topk_kl(*x, *tensors[2:], k=32)
        losses.append([loss, *torch.autograd.grad(loss.sum(), x)])
    for a, b in zip(*losses, strict=True):
        assert b.device.index == 1
        torch.testing.assert_close(a.cpu(), b.cpu())


SMALL_RUN = """
import torch
from raft_kernels import linear_topk_kl, topk_metrics, linear_topk
for dtype in (torch.bfloat16, torch.float16, torch.float32):
    for n, h, v, k in ((3, 40, 700, 7), (130, 251, 1101, 17)):
        x, w, t = (torch.randn(*s, device="cuda").to(dtype).requires_grad_() for s in ((n, h), (v, h), (n, h)))
        for tail in ("renormalize", "bucket"):
            linear_topk_kl(x, w, t, w, k=k, tail=tail, vocab_size=v - 3).sum().backward()
        topk_metrics(x, w, linear_topk(t, w, k))
torch.cuda.synchronize()
"""


@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="compute-sanitizer is not on the PATH")
def test_no_access_out_of_bounds():
    """Without torch's memory pool, so that an access beyond a tensor is one beyond its allocation."""
    search = os.pathsep.join([str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-c", SMALL_RUN],
        env={**os.environ, "PYTHONPATH": search, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "Device not supported" in run.stdout + run.stderr:
        pytest.skip("compute-sanitizer does not support this machine")
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
