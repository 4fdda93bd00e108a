"""What is logged, how often the host waits for the device, and the operations that are counted."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from raft.models.language_model import LanguageModel
from raft.models.packing import Span, pack
from raft.train.flops import Flops, named_peak, peak_flops
from tests.golden.training import lines, load, trainer


def test_a_line_says_where_the_time_went(tmp_path):
    trainer(tmp_path, max_steps=2, peak_tflops=0.1).train()
    for line in lines(tmp_path / "metrics.jsonl"):
        parts = {"rollout", "teacher", "forward_backward", "optimizer", "refresh"}
        assert set(line["seconds"]) == set(line["share"]) == parts
        assert 0.5 < sum(line["share"].values()) <= 1.001
        wall = line["tokens"] / line["tokens_per_second"]
        for part in parts:
            assert line["share"][part] == pytest.approx(line["seconds"][part] / wall)
        assert set(line["phase_tokens_per_second"]) == {"rollout", "teacher", "forward_backward"}
        rate = line["phase_tokens_per_second"]["forward_backward"]
        assert rate == pytest.approx(line["tokens"] / line["seconds"]["forward_backward"])
        assert line["mfu"] == pytest.approx(line["tflops"] / 0.1) and line["mfu"] > 0
        assert 0 < line["teacher_mass"] <= 1 and 0 < line["student_mass"] <= 1
        assert 0 <= line["top1_agreement"] <= 1
        assert 0 < line["student_entropy"] < 3.47 and 0 < line["teacher_entropy"] < 3.47  # ln 32


def test_the_share_of_the_peak_is_left_open_where_nobody_knows_it(tmp_path):
    trainer(tmp_path, max_steps=1, method="sft").train()
    line = lines(tmp_path / "metrics.jsonl")[0]
    assert line["mfu"] is None and line["tflops"] > 0
    assert line["loss_kl"] is None and line["lambda"] is None and "student_entropy" not in line
    assert peak_flops(torch.device("cpu"), 2.0) == 2e12
    named = {
        "NVIDIA H200": 989e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA RTX A1000": None,
    }
    assert {name: named_peak(name) for name in named} == named


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a GPU: numbers and sizes that are read off tensors."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "repeat_interleave", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.partition(".")[0]
        if name.strip("_") in [read.strip("_") for read in self.READS]:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", [{}, {"balance": "gradient"}])
def test_no_step_waits_but_those_that_are_logged(tmp_path, monkeypatch, settings):
    monkeypatch.setattr("raft_kernels.cross_entropy.may_look", lambda x: False)  # as on a GPU
    made = trainer(tmp_path, max_steps=4, logging_steps=4, gradient_accumulation_steps=2, **settings)
    found = []
    step, after = made.training_step, made.after_step

    def watched(own):
        def call(*args):
            with Waits() as waits:
                result = own(*args)
            found.append(waits.found)
            return result

        return call

    made.training_step, made.after_step = watched(step), watched(after)
    made.train()
    assert len(found) == 3 * 4 and not any(found)
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [4]
    assert [line["step"] for line in lines(tmp_path / "rollouts.jsonl")] == [s for s in range(1, 5) for _ in range(4)]


def test_the_watch_sees_a_wait():
    with Waits() as waits:
        assert torch.ones(2).sum().item() == 2
    assert waits.found == ["_local_scalar_dense"]


def test_operations_of_a_shared_prompt_are_counted_once():
    flops = Flops(load()[0])
    whole, shared = flops.forward([Span(0, 5), Span(0, 5)], 0), flops.forward([Span(0, 3), Span(3, 2), Span(3, 2)], 0)
    assert whole - shared == 3 * flops.layers + 6 * flops.attention


@pytest.mark.parametrize("family", ["qwen3", "llama", "phi3", "qwen3_moe"])
def test_operations_are_those_that_torch_counts(family):
    model, _ = load(family)
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")  # torch does not count grouped products
    lengths = [40, 3, 17]
    language = LanguageModel(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        for length in lengths:  # each by itself: torch counts the whole square of the attention, not its causal half
            hidden = language.hidden(pack([list(range(5, 5 + length))]))
            language.head().logits(hidden[: length // 2])
    flops = Flops(model)
    positions = sum(length // 2 for length in lengths)
    spans = [Span(0, length) for length in lengths]
    upper = flops.attention * sum(n * n - n * (n + 1) / 2 for n in lengths)
    norms = sum(
        p.numel() for n, p in model.named_parameters() if p.dim() == 1
    )  # counted by us as if they were products
    ours = flops.forward(spans, positions) + upper - 2 * norms * sum(lengths)
    assert ours == pytest.approx(counted.get_total_flops(), rel=1e-2)
