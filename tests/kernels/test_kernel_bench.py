"""The benchmark of the kernels: its providers agree, its records hold what tables need, its memory is right."""

import json

import pytest
import torch

from bench import kernels, providers
from bench.measure import measure, peak_mib

TINY = ["--n", "8", "--h", "4", "--v", "96", "--k", "6", "--reps", "2", "--device", "cpu"]
FIELDS = [
    "op",
    "provider",
    "device",
    "n",
    "h",
    "v",
    "k",
    "dtype",
    "regime",
    "pass",
    "ms_p20",
    "ms_p50",
    "ms_p80",
    "peak_mib",
    "versions",
    "commit",
    "command",
]


def test_records(tmp_path, capsys):
    out = tmp_path / "records.json"
    argv = [*TINY, "--quick", "--providers", "raft_kernels,torch", "--out", str(out)]
    assert kernels.main(argv) == 0
    found = json.loads(out.read_text())
    assert {(r["op"], r["pass"], r["provider"]) for r in found} == {
        (op, name, provider)
        for op, name in (("linear_topk", "forward"), ("linear_topk_kl", "forward"), ("linear_topk_kl", "full"))
        for provider in ("raft_kernels", "torch")
    }
    for r in found:
        assert sorted(r) == sorted(FIELDS)
        assert 0 < r["ms_p20"] <= r["ms_p50"] <= r["ms_p80"]
        assert (r["n"], r["h"], r["v"], r["k"], r["dtype"], r["regime"]) == (8, 4, 96, 6, "float32", "randn")
        assert "--reps 2" in r["command"]
    assert "| linear_topk_kl | full | raft_kernels |" in capsys.readouterr().out


def test_an_unknown_provider_is_named(capsys):
    with pytest.raises(SystemExit):
        kernels.parse(["--providers", "raft_kernels,apex"])
    assert "apex unknown; there are raft_kernels, torch, trl, liger" in capsys.readouterr().err


@pytest.mark.parametrize("regime", ["randn", "zipf"])
def test_providers_of_one_loss_agree(regime):
    inputs = providers.make_inputs(16, 24, 400, 12, torch.float32, "cpu", regime)
    expected = providers.reference_loss(inputs)
    for name, loss in providers.losses(["raft_kernels", "torch"], quick=True).items():
        torch.testing.assert_close(loss(inputs), expected, msg=name)


def test_zipf_tokens_share_their_ids():
    shared = {}
    for regime in ("randn", "zipf"):
        x = providers.make_inputs(64, 64, 4000, 64, torch.float32, "cpu", regime)
        shared[regime] = (x.teacher_hidden @ x.teacher_weight.t()).topk(64).indices.unique().numel()
    assert shared["zipf"] < 0.85 * shared["randn"]


def test_measure_counts_what_is_held_at_once():
    def call():
        first = torch.ones(1 << 18)
        second = first + 1
        del first
        return second + 1

    assert peak_mib(call, "cpu") == pytest.approx(2, abs=0.1)
    seen = []
    found = measure({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, "cpu", reps=3)
    assert seen[4:] == ["a", "b"] * 3
    assert found["a"].ms_p20 <= found["a"].ms_p50 <= found["a"].ms_p80
