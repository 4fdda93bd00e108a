"""The benchmark of the kernels: its floors are those computed by hand, its providers compute what they say, and no
failure, interruption or missing package costs a run what it has measured."""

import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from bench.common import files, limits
from bench.common.measure import Measured, measure, peak_mib
from bench.kernels import cases, check, compare, floors, goals, plot, providers, records
from bench.kernels.cases import Case
from bench.kernels.providers import OPS, Provider

TINY = ["--n", "8", "--h", "4", "--v", "96", "--k", "6", "--reps", "2", "--device", "cpu", "--quick"]
PASSES = [(op, name) for op, names in OPS.items() for name in names]
H200 = limits.Ceilings(flops=790e12, bandwidth=4.3e12)
BASE = cases.CUDA
FIELDS = ["op", "provider", "device", "n", "h", "v", "k", "dtype", "regime", "pass", "ms_p20", "ms_p50", "ms_p80"]
FIELDS += ["peak_mib", "versions", "commit", "command"]  # the contract; what follows is for the tables
FIELDS += ["loss", "tflops", "bytes", "floor_ms", "percent_of_floor", "union_fraction", "covered_mass", "limit"]


def uniform(case: Case) -> float:
    """The part of the vocabulary that 128 tokens have in their top-K when ids are drawn at random."""
    return 1 - (1 - case.k / case.v) ** 128


def fake(op, name, provider, ms, mib=100.0, case=BASE, loss="top-K"):
    return records.record(
        op,
        name,
        provider,
        loss,
        "NVIDIA H200",
        case,
        Measured(ms, ms, ms, mib),
        limit=H200,
        union_fraction=uniform(case),
        covered_mass=0.5,
        command="python -m bench kernels",
    )


# Floors: milliseconds worked out by hand for N=8192, K=512 at 790 TFLOP/s and 4.3 TB/s


@pytest.mark.parametrize(
    ("h", "v", "gemm", "dense", "gather", "union"),
    [
        (2048, 128256, 5.45, 16.3, 12.0, 6.55),
        (3072, 128256, 8.17, 24.5, 18.0, 9.83),
        (4096, 128256, 10.9, 32.7, 24.0, 13.1),
        (4096, 151936, 12.9, 38.7, 24.0, 13.6),
    ],
)
def test_floors_by_hand(h, v, gemm, dense, gather, union):
    case = replace(BASE, h=h, v=v)
    assert floors.gemm_s(case, H200) * 1e3 == pytest.approx(gemm, rel=5e-3)
    thrice = {name: 3e3 * s for name, s in floors.sparse_product_s(case, H200, uniform(case)).items()}
    assert thrice == pytest.approx({"dense": dense, "gather": gather, "union": union}, rel=5e-3)
    # The teacher's 8192 x V bf16 logits are written and read: 0.98 ms at V=128256, and 0.008 ms for what is kept.
    teacher = floors.floor_ms("linear_topk", "forward", case, H200, 1.0)
    assert teacher == pytest.approx(gemm + 0.977 * v / 128256 + 0.008, rel=5e-3)
    # Beside its three products the student writes dW (0.244 ms at H=4096, V=128256) and dH (0.016).
    student = floors.floor_ms("topk_kl", "full", case, H200, uniform(case))
    assert student == pytest.approx(union + (0.244 * v / 128256 + 0.016) * h / 4096 + 0.008, rel=5e-3)
    both = floors.floor_ms("linear_topk_kl", "full", case, H200, uniform(case))
    assert both == pytest.approx(teacher + student)


def test_the_student_takes_the_cheapest_way():
    def forward(case, union):
        return floors.floor_ms("topk_kl", "forward", case, H200, union)

    ways = floors.sparse_product_s(BASE, H200, 0.1)
    assert forward(BASE, 0.1) == pytest.approx(1e3 * ways["union"], rel=1e-2)
    assert forward(BASE, 1.0) == pytest.approx(1e3 * ways["gather"], rel=1e-2)
    assert forward(replace(BASE, k=4096), 1.0) == pytest.approx(1e3 * ways["dense"], rel=1e-2)
    # N K H 2 / B < 2 N H V / F up to K = V B / F = 698.
    for k, cheaper in ((690, "gather"), (706, "dense")):
        ways = floors.sparse_product_s(replace(BASE, k=k), H200, 1.0)
        assert min(("dense", "gather"), key=ways.__getitem__) == cheaper


def test_flops_and_bytes_by_hand():
    case = Case(n=4, h=8, v=100, k=5, dtype="float32", regime="randn")
    flops = [6400, 320, 960, 6720, 7360]
    # hidden and head of one model 3328; ids and logits 160; losses 16; gradients 3328
    moved = [3488, 3328 + 160 + 16, 2 * 3328 + 160 + 16, 2 * 3328 + 16, 3 * 3328 + 16]
    assert [floors.algorithmic_flops(op, name, case) for op, name in PASSES] == flops
    assert [floors.compulsory_bytes(op, name, case) for op, name in PASSES] == moved


def test_cross_entropy_by_hand():
    case = Case(n=1024, h=576, v=49152, k=1, dtype="float32", regime=cases.LABELS)
    laptop = limits.Ceilings(flops=0.2e12, bandwidth=30e9)
    assert floors.algorithmic_flops("linear_cross_entropy", "full", case) == 173_946_175_488
    # Hidden states and head read, their gradients written, one label a token, one loss.
    model = (1024 + 49152) * 576 * 4
    assert floors.compulsory_bytes("linear_cross_entropy", "full", case) == 2 * model + 1024 * 8 + 4
    assert floors.floor_ms("linear_cross_entropy", "full", case, laptop, 0.0) == pytest.approx(869.7 + 3.85, rel=1e-3)


def test_ceilings_are_those_of_a_machine():
    limit = limits.ceilings("cpu", torch.float32, quick=True)
    assert 1e7 < limit.flops < 1e15 and 1e7 < limit.bandwidth < 1e14


# Cases


def test_union_fraction_of_known_ids():
    ids = torch.tensor([[0, 1], [1, 2], [0, 2], [0, 1], [5, 6], [7, 8], [0, 1]])
    assert cases.union_fraction(ids, v=10, tile=2) == pytest.approx((3 + 3 + 4) / 3 / 10)  # the last row fills no tile
    assert cases.union_fraction(ids, v=10, tile=100) == pytest.approx(0.7)


def test_zipf_is_like_text_and_randn_is_not():
    made = {}
    for regime in cases.REGIMES:
        made[regime] = cases.make_inputs(Case(256, 64, 65536, 512, "float32", regime), "cpu")
    assert made["zipf"].covered_mass > 0.95 and made["randn"].covered_mass < 0.6
    assert made["zipf"].union_fraction < 0.3
    assert made["randn"].union_fraction == pytest.approx(1 - (1 - 512 / 65536) ** 128, rel=0.15)
    loss = providers.MAKERS["raft_kernels"]("cpu", True).ops["topk_kl"](made["zipf"])().mean()
    assert 0.02 < loss < 1  # a student near its teacher


def test_the_teacher_of_a_case_is_its_top_k():
    x = cases.make_inputs(Case(20, 16, 300, 7, "bfloat16", "zipf"), "cpu")
    logits = x.teacher_hidden.float() @ x.teacher_weight.float().t()
    assert x.teacher.logits.sort(descending=True).values.equal(logits.topk(7).values)
    assert x.teacher.indices.diff(dim=-1).gt(0).all()
    probability = torch.softmax(logits / 1.5, -1).gather(-1, x.teacher.indices.long())
    assert x.covered_mass == pytest.approx(probability.sum(-1).mean().item(), rel=1e-5)


def test_the_sweep_on_a_gpu():
    found = cases.sweep(cases.CUDA, "axes")
    sizes = [(c.n, c.h, c.v, c.k) for c in found]
    assert sizes[:3] == [(8192, 4096, 128256, 512)] * 2 + [(8192, 2048, 151936, 512)]
    assert [c.regime for c in found[:2]] == ["randn", "zipf"] and len(set(found)) == len(found) == 11
    for axis, values in cases.AXES[cases.CUDA].items():
        assert {getattr(c, axis) for c in found} == set(values)
    assert len(cases.sweep(cases.CUDA, "full")) == 3**4


def test_cases_from_the_command_line():
    def chosen(*words):
        return compare.chosen_cases(compare.parse(["--device", "cpu", *words]))

    assert chosen() == [cases.CPU, *cases.CROSS_ENTROPY[cases.CPU]]
    assert chosen("--losses", "distillation") == [cases.CPU]
    assert chosen("--k", "64", "--dtype", "bfloat16") == [replace(cases.CPU, k=64, dtype="bfloat16")]
    assert [c.regime for c in chosen("--regime", "both")] == ["randn", "zipf"]
    on_gpu = compare.parse(["--device", "cuda"])
    assert compare.chosen_cases(on_gpu) == [*cases.sweep(cases.CUDA, "axes"), *cases.CROSS_ENTROPY[cases.CUDA]]
    only = chosen("--losses", "cross_entropy")
    assert only == cases.CROSS_ENTROPY[cases.CPU] and {c.v for c in only} == {49152, 128256, 151936}
    assert {c.dtype for c in chosen("--losses", "cross_entropy", "--dtype", "bfloat16")} == {"bfloat16"}
    on_gpu = compare.parse(["--device", "cuda", "--n", "256"])
    assert compare.chosen_cases(on_gpu) == [replace(cases.CUDA, n=256)]


def test_wrong_words_on_the_command_line_are_named(capsys):
    for words, message in (
        (["--providers", "raft_kernels,apex"], "apex unknown; there are raft_kernels, torch, torch.compile, gemm"),
        (["--sweep", "axes", "--h", "8"], "leave out --h"),
    ):
        with pytest.raises(SystemExit):
            compare.parse(words)
        assert message in capsys.readouterr().err


# Providers and the check of their results


@pytest.mark.parametrize("regime", cases.REGIMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_providers_of_our_loss_pass_the_check(regime, dtype):
    x = cases.make_inputs(Case(100, 24, 400, 12, dtype, regime), "cpu")
    reference = check.Reference(x)
    usable, left_out = providers.make(["raft_kernels", "torch", "gemm+topk"], "cpu", quick=True)
    assert not left_out
    for provider in usable:
        for op, bind in provider.ops.items():
            reference.check(op, bind(x))


def test_the_check_finds_wrong_results():
    x = cases.make_inputs(Case(100, 24, 400, 12, "float32", "zipf"), "cpu")
    reference, ours = check.Reference(x), providers.MAKERS["raft_kernels"]("cpu", True)
    loss = ours.ops["topk_kl"](x)
    ids, logits = x.teacher.indices, x.teacher.logits
    next_best = (x.teacher_hidden @ x.teacher_weight.t()).topk(13)
    hidden = x.student_hidden
    wrong = [
        ("topk_kl", lambda: 1.01 * loss(), "loss off"),
        ("topk_kl", lambda: loss() * float("nan"), "loss off by nan"),
        ("topk_kl", lambda: loss() + 0.01 * (hidden - hidden.detach()).sum(-1), "gradient by hidden off"),
        ("topk_kl", lambda: loss() + 0.01 * (x.student_weight - x.student_weight.detach()).sum(), "by head off"),
        ("topk_kl", lambda: loss() + 1e-6 * (hidden - hidden.detach()).sum(), "tokens whose loss was not summed"),
        ("linear_topk", lambda: (ids, logits + 0.1), "logits off"),
        ("linear_topk", lambda: (next_best.indices[:, 1:], next_best.values[:, :12]), "logits of the chosen ids off"),
        ("linear_topk", lambda: (ids[:, :1].expand_as(ids), logits), "an id twice"),
    ]
    for op, call, message in wrong:
        with pytest.raises(check.WrongResult, match=message):
            reference.check(op, call)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_providers_of_cross_entropy_pass_the_check_and_wrong_ones_do_not(dtype):
    x = cases.make_inputs(Case(100, 24, 400, 1, dtype, cases.LABELS), "cpu")
    reference = check.Reference(x)
    usable, _ = providers.make(["raft_kernels", "torch", "torch_native"], "cpu", quick=True)
    for provider in usable:
        reference.check("linear_cross_entropy", provider.ops["linear_cross_entropy"](x))
    right = usable[0].ops["linear_cross_entropy"](x)
    hidden, weight = x.parameters
    for call, message in (
        (lambda: 1.2 * right(), "loss off"),
        (lambda: right() + (hidden - hidden.detach()).sum(), "gradient by hidden off"),
        (lambda: right() + (weight - weight.detach()).sum(), "gradient by head off"),
    ):
        with pytest.raises(check.WrongResult, match=message):
            reference.check("linear_cross_entropy", call)


def test_a_full_vocabulary_peer_agrees_where_k_is_v():
    x = cases.make_inputs(Case(16, 24, 400, 400, "float32", "zipf"), "cpu")
    usable, _ = providers.make(["raft_kernels", "trl", "liger_jsd"], "cpu", quick=True)
    ours, *peers = (p.ops["linear_topk_kl"](x)().mean() for p in usable)
    if not peers:
        pytest.skip("neither TRL nor Liger is installed")
    for provider, loss in zip(usable[1:], peers, strict=True):
        factor = 1.5**2 if provider.name.startswith("liger") else 1  # Liger leaves out T^2
        torch.testing.assert_close(factor * loss, ours, rtol=1e-4, atol=1e-6, msg=provider.name)


def test_trl_without_what_its_trainer_imports(monkeypatch):
    pytest.importorskip("trl")
    for name in [name for name in sys.modules if name.split(".")[0] == "trl"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "datasets", None)
    provider = providers.MAKERS["trl"]("cpu", True)
    x = cases.make_inputs(Case(4, 8, 30, 30, "float32", "zipf"), "cpu")
    expected = providers.MAKERS["torch"]("cpu", True).ops["linear_topk_kl"](x)()
    torch.testing.assert_close(provider.ops["linear_topk_kl"](x)(), expected, rtol=1e-4, atol=1e-6)
    assert "trl.trainer.utils" not in sys.modules


def test_a_cpu_is_asked_for_its_memory_first():
    huge = Case(10**6, 8, 10**6, 5, "float32", "randn")
    with pytest.raises(providers.Unavailable, match="needs about 11176 GiB"):
        providers.check_room(providers.MAKERS["torch"]("cpu", True), huge, "cpu")
    providers.check_room(providers.MAKERS["raft_kernels"]("cpu", True), huge, "cpu")


# A run


def test_records(tmp_path, capsys):
    out = tmp_path / "records.json"
    assert compare.main([*TINY, "--providers", "torch,raft_kernels,gemm", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    expected = [(op, name, p) for op, name in PASSES for p in ("raft_kernels", "torch")]
    expected.insert(2, ("linear_topk", "forward", "gemm"))
    assert [(r["op"], r["pass"], r["provider"]) for r in found] == expected
    for r in found:
        assert sorted(r) == sorted(FIELDS)
        assert 0 < r["ms_p20"] <= r["ms_p50"] <= r["ms_p80"] and r["peak_mib"] > 0
        assert (r["n"], r["h"], r["v"], r["k"], r["dtype"], r["regime"]) == (8, 4, 96, 6, "float32", "randn")
        assert r["command"] == "python -m bench kernels " + " ".join([*TINY, "--providers", "torch,raft_kernels,gemm"])
        assert 6 / 96 <= r["union_fraction"] <= 0.5 and 0 < r["covered_mass"] < 1
        flops = floors.algorithmic_flops(r["op"], r["pass"], records.case_of(r))
        assert r["tflops"] == pytest.approx(flops / r["ms_p50"] / 1e9, rel=1e-3)
        if r["provider"] == "gemm":
            assert r["percent_of_floor"] is None
        else:
            assert r["percent_of_floor"] == pytest.approx(100 * r["floor_ms"] / r["ms_p50"], rel=1e-3)
    for text in (capsys.readouterr().out, out.with_suffix(".md").read_text()):
        assert "| linear_topk_kl | full | raft_kernels | top-K |" in text
        assert "linear_topk_kl full: raft_kernels vs torch " in text


@pytest.mark.gpu
def test_records_of_a_gpu(tmp_path):
    out = tmp_path / "records.json"
    argv = ["--quick", "--device", "cuda", "--providers", "raft_kernels,torch,gemm+topk", "--out", str(out)]
    assert compare.main(argv) == 0
    assert {(r["op"], r["provider"]) for r in json.loads(out.read_text())} >= {(op, "raft_kernels") for op in OPS}


def use(monkeypatch, **loss_calls):
    """Providers that give ours, or what `loss_calls` says, for linear_topk_kl."""
    ours = providers.MAKERS["raft_kernels"]("cpu", True)
    makers = {"raft_kernels": lambda *_: ours}
    for name, call in loss_calls.items():
        makers[name] = partial(lambda name, call, *_: Provider(name, "top-K", {"linear_topk_kl": call}), name, call)
    monkeypatch.setattr(providers, "MAKERS", makers)


def test_what_fails_is_left_out(monkeypatch, tmp_path, capsys):
    def broken(x):
        raise RuntimeError("no such kernel\nand a long story")

    def greedy(x):
        def call():
            raise torch.OutOfMemoryError("tried to allocate everything")

        return call

    def wrong(x):
        return lambda: (x.student_hidden @ x.student_weight.t()).logsumexp(-1)

    def tired(x):
        ours, calls = providers.MAKERS["raft_kernels"]("cpu", True).ops["linear_topk_kl"](x), []

        def call():
            calls.append(1)
            if len(calls) == 4:
                raise torch.OutOfMemoryError("memory is in pieces")
            return ours()

        return call

    use(monkeypatch, broken=broken, greedy=greedy, wrong=wrong, tired=tired)
    monkeypatch.setitem(providers.MAKERS, "absent", lambda *_: providers._need("no_such_package"))
    out = tmp_path / "records.json"
    assert compare.main([*TINY, "--out", str(out)]) == 0
    found = [(r["provider"], r["pass"]) for r in json.loads(out.read_text()) if r["op"] == "linear_topk_kl"]
    assert found == [("raft_kernels", "forward"), ("raft_kernels", "full"), ("tired", "full")]
    case = "linear_topk_kl at N=8 H=4 V=96 K=6 float32 randn"
    for text in (capsys.readouterr().out, out.with_suffix(".md").read_text()):
        assert "absent: left out, not installed\n" in text
        assert f"broken: left out, {case}: RuntimeError: no such kernel\n" in text
        assert f"greedy: left out, {case}: out of memory\n" in text
        assert f"tired: left out, {case.replace(' at', ' forward at')}: out of memory\n" in text
        assert f"wrong: left out, {case}: WrongResult: wrong result: loss off by " in text


def test_an_interrupted_run_keeps_its_records(monkeypatch, tmp_path, capsys):
    def interrupt(x):
        raise KeyboardInterrupt

    use(monkeypatch, impatient=interrupt)
    out = tmp_path / "records.json"
    assert compare.main([*TINY, "--out", str(out)]) == 130
    assert {r["op"] for r in json.loads(out.read_text())} == {"linear_topk", "topk_kl"}
    assert "interrupted: what was measured before is kept" in capsys.readouterr().out
    assert [p.name for p in tmp_path.glob("*.tmp")] == []


def test_records_are_on_disk_before_the_next_operation(monkeypatch, tmp_path):
    out = tmp_path / "records.json"
    seen = []

    def look(x):
        seen.append({(r["op"], r["pass"]) for r in json.loads(out.read_text())})
        return lambda: None

    use(monkeypatch, watcher=look)
    compare.main([*TINY, "--out", str(out)])
    assert seen == [set(PASSES[:3])]


def test_a_time_budget_skips_the_rest(tmp_path, capsys):
    out = tmp_path / "records.json"
    assert compare.main([*TINY, "--regime", "both", "--minutes", "0", "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == []
    assert capsys.readouterr().out.count("the 0 minutes are over") == 2


@pytest.mark.parametrize("named", [False, True])
def test_what_is_slow_to_start_runs_at_the_first_sizes(monkeypatch, tmp_path, named):
    ours = providers.MAKERS["raft_kernels"]("cpu", True)
    makers = {"raft_kernels": lambda *_: ours, "slow": lambda *_: replace(ours, name="slow", slow_start=True)}
    monkeypatch.setattr(providers, "MAKERS", makers)
    monkeypatch.setattr(cases, "CPU", cases.QUICK)
    monkeypatch.setitem(cases.AXES, cases.QUICK, {"n": (4,), "k": (3,)})
    monkeypatch.setattr(compare, "ceilings", lambda *_: H200)
    out = tmp_path / "records.json"
    words = ["--device", "cpu", "--reps", "1", "--sweep", "axes", "--losses", "distillation", "--out", str(out)]
    compare.main([*words, "--providers", "raft_kernels,slow"] if named else words)
    found = json.loads(out.read_text())
    everywhere = {(64, 32, "randn"), (64, 32, "zipf"), (4, 32, "randn"), (64, 3, "randn")}
    at_first = {(64, 32, "randn"), (64, 32, "zipf")}

    def sizes(provider):
        return {(r["n"], r["k"], r["regime"]) for r in found if r["provider"] == provider}

    assert sizes("raft_kernels") == everywhere
    assert sizes("slow") == (everywhere if named else at_first)


def test_where_records_go():
    def path(*words, device="cpu", name="cpu, 2 threads"):
        found = compare.output(compare.parse(["--device", device, *words]), name)
        return found and found.name

    assert path() == "kernels-cpu.json"
    assert path(device="cuda", name="NVIDIA H200") == "kernels-h200.json"
    assert path("--n", "256", "--k", "64") == "kernels-cpu-n256-k64.json"
    assert path("--regime", "zipf", "--sweep", "axes") == "kernels-cpu-axes-zipf.json"
    assert path("--quick") is None and path("--out", "x.json") == "x.json"
    assert path("--sweep", "point", "--name", "tuned", device="cuda", name="NVIDIA H100 80GB HBM3") == (
        "kernels-h100-80gb-hbm3-tuned.json"
    )
    assert files.command_of("kernels", ["--quick", "--out", "x", "--reps", "2", "--out=y"]) == (
        "python -m bench kernels --quick --reps 2"
    )


def test_a_machine_that_keeps_nothing_says_where_records_go_and_what_is_measured(tmp_path):
    program = """
from bench.common import files
from bench.kernels import compare
print(files.commit())
print(compare.output(compare.parse(["--device", "cpu", "--quick"]), "cpu"))
"""
    for part in ("bench", "kernels"):
        source = files.ROOT / part
        shutil.copytree(source, tmp_path / part, ignore=shutil.ignore_patterns("results", "__pycache__"))
    own = {
        "BENCH_COMMIT": "abc123",
        "BENCH_RESULTS": str(tmp_path / "there"),
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{tmp_path / 'kernels'}",
    }
    run = [sys.executable, "-c", program]
    said = subprocess.check_output(run, cwd=tmp_path, env={**os.environ, **own}, text=True)
    assert said.splitlines() == ["abc123", str(tmp_path / "there" / "kernels-cpu.json")]


def test_a_checkout_runs_without_being_installed(monkeypatch):
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not p.endswith("kernels")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    root = files.ROOT
    runpy.run_path(str(root / "bench" / "__init__.py"))
    assert sys.path[0] == str(root / "kernels")


# Ratios, goals, picture


def test_ratios_and_goals_of_the_cpu():
    case = replace(cases.CPU, regime="zipf")
    full = partial(fake, "linear_topk_kl", "full", case=case)
    found = [full("raft_kernels", 1000, 150), full("torch", 2000, 500), full("trl", 4100), full("liger_jsd", 2400)]
    ratios = "vs torch 2.0 times, vs trl 4.1 times, vs liger_jsd 2.4 times as fast"
    assert goals.summary(found) == [
        f"{case}: linear_topk_kl full: raft_kernels {ratios}; peak of raft_kernels / peak of torch = 0.30",
        f"{case}: goal: >= 2.5 x faster than TRL: 4.10 met",
        f"{case}: goal: peak <= 0.6 of naive torch top-K: 0.30 met",
    ]
    found = [full("raft_kernels", 1000, 301), full("torch", 2000, 500)]
    assert [line.split("goal: ")[1] for line in goals.summary(found)[1:]] == [
        ">= 2.5 x faster than TRL: not measured",
        "peak <= 0.6 of naive torch top-K: 0.60 missed",
    ]
    slow = goals.summary([full("raft_kernels", 1000), full("trl", 2400)])
    assert slow[1].endswith("goal: >= 2.5 x faster than TRL: 2.40 missed")
    assert not any(
        "goal" in line for line in goals.summary([fake("linear_topk_kl", "full", "trl", 1, case=cases.QUICK)])
    )


def test_goals_of_the_gpu():
    full, teacher = partial(fake, "linear_topk_kl", "full"), partial(fake, "linear_topk", "forward")
    found = [
        full("raft_kernels", 31, 2100),
        full("liger_kl", 60, loss="full vocabulary"),
        full("trl", 90),
        teacher("raft_kernels", 13),
        teacher("gemm", 11),
    ]
    assert list(goals.goals(BASE, found)) == [
        "goal: <= 30 ms: 31.00 missed",
        "goal: <= 0.5 of the best peer (liger_kl, 60.0 ms): 0.52 missed",
        "goal: peak <= 2.1 GiB: 2.05 met",
        "goal: teacher <= 1.1 x bare GEMM: 1.18 missed",
    ]
    on_h100 = [{**r, "device": "NVIDIA H100 80GB HBM3"} for r in found]
    assert next(iter(goals.goals(BASE, on_h100))) == "goal: <= 33 ms: 31.00 met"
    assert next(iter(goals.goals(replace(BASE, regime="zipf"), found))) == "goal: <= 22 ms: 31.00 missed"
    # A variant of ours is no peer.
    variant = full("raft_kernels:tuned", 20)
    assert list(goals.goals(BASE, [*found, variant])) == list(goals.goals(BASE, found))
    assert [line.rsplit(": ", 1)[1] for line in goals.goals(BASE, [])] == ["not measured"] * 4
    assert list(goals.goals(replace(BASE, k=64), found)) == []


def test_records_and_goals_of_cross_entropy(monkeypatch, tmp_path, capsys):
    out = tmp_path / "records.json"
    words = ["--quick", "--device", "cpu", "--reps", "2", "--losses", "cross_entropy", "--plain", "--out", str(out)]
    assert compare.main(words) == 0
    found = json.loads(out.read_text())
    assert {(r["op"], r["pass"], r["loss"]) for r in found} == {("linear_cross_entropy", "full", "labels")}
    assert {r["provider"] for r in found} >= {"raft_kernels", "torch"} and all(
        sorted(r) == sorted(FIELDS) for r in found
    )
    assert "float32 labels**, cross-entropy" in capsys.readouterr().out

    case = Case(1024, 576, 49152, 1, "float32", cases.LABELS)
    ce = partial(fake, "linear_cross_entropy", "full", case=case)
    gradients = (1024 + 49152) * 576 * 4 / 2**20
    lines = goals.goals(
        case, [ce("raft_kernels", 90, gradients + 50), ce("torch", 100, 576), ce("torch_native", 80, 576)]
    )
    assert [line.replace("goal: cross-entropy ", "") for line in lines] == [
        "<= 1.05 of the time of the fastest other (torch_native): 1.12 missed",
        "<= 0.5 of plain torch's peak: 0.28 met",
        "cross-entropy: beyond the gradients, 110 MiB, 50 MiB against 466: 0.11",
    ]


def sweep_records():
    return [
        fake("linear_topk_kl", "full", name, ms * case.n / 8192, case=case, loss=loss)
        for case in cases.sweep(BASE, "axes")
        for name, ms, loss in (("raft_kernels", 30, "top-K"), ("torch", 90, "top-K"), ("trl", 75, "full vocabulary"))
        if not (name == "torch" and case.n == 32768)
    ]


def test_the_picture_varies_one_axis_at_a_time():
    base, over_n, over_k = plot.axes_of(list(records.by_case(sweep_records())))
    assert base == BASE
    assert [c.n for c in over_n] == [2048, 8192, 32768] and {replace(c, n=8192) for c in over_n} == {BASE}
    assert [c.k for c in over_k] == [64, 512, 1024] and {replace(c, k=512) for c in over_k} == {BASE}


@pytest.mark.parametrize("kind", ["point", "sweep"])
def test_the_picture(tmp_path, kind, monkeypatch):
    pytest.importorskip("matplotlib")
    found = sweep_records()
    drawn = [r for r in found if records.case_of(r) == BASE] if kind == "point" else found
    title = plot.finding({r["provider"]: r for r in drawn if records.case_of(r) == BASE})
    assert title == "Distillation on the teacher's top-512: 2.5 times as fast as trl, 1.00 of plain torch's memory"
    (tmp_path / "r.json").write_text(json.dumps(drawn))
    assert compare.main(["--records", str(tmp_path / "r.json")]) == 0
    first = (tmp_path / "r.svg").read_bytes()
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG") and b"<svg" in first
    plot.draw(drawn, tmp_path / "again")
    assert (tmp_path / "again.svg").read_bytes() == first


def test_without_matplotlib_there_is_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / "r.json").write_text(json.dumps(sweep_records()))
    assert compare.main(["--records", str(tmp_path / "r.json")]) == 0
    assert "picture: left out, " in capsys.readouterr().out
    assert not (tmp_path / "r.svg").exists()


# Measuring


def test_measure_counts_what_is_held_at_once():
    def call():
        first = torch.ones(1 << 18)
        second = first + 1
        del first
        return second + 1

    assert peak_mib(call, "cpu") == pytest.approx(2, abs=0.1)


def test_measure_takes_turns(monkeypatch):
    seen: list[str] = []
    found = measure({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, "cpu", reps=3)
    assert seen[2:] == ["a", "b"] * 3
    assert found["a"].ms_p20 <= found["a"].ms_p50 <= found["a"].ms_p80
    seen.clear()
    monkeypatch.setattr("bench.common.measure.milliseconds", lambda call, device: call() or 400.0)
    measure({"a": lambda: seen.append("a")}, "cpu", reps=20, cap_s=2.8)
    assert len(seen) - 1 == 7  # five in any case, then until 2.8 s are spent
    seen.clear()
    measure({"a": lambda: seen.append("a")}, "cpu", reps=20, cap_s=0.1)
    assert len(seen) - 1 == 5
