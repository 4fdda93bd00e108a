"""What needs processes of their own: a kill -9 in the middle, and two ranks that must equal one."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.golden.training import checkpoint, exact, lines
from tests.ranks import torchrun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def start(folder, settings, *words, ranks=1):
    child = ("tests.golden.child", str(folder), str(checkpoint()), json.dumps(settings), *words)
    command = [sys.executable, "-m", *child] if ranks == 1 else torchrun(*child, ranks=ranks)
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def finish(process):
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors.decode()[-12000:]


def wait_for(process, path, count):
    """Until the file has `count` lines."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.01)


def weights(folder):
    return torch.load(folder / "weights.pt")


def test_killed_in_the_middle_a_run_resumes_exactly(tmp_path):
    settings = {
        "num_train_epochs": 12,
        "save_strategy": "steps",
        "save_steps": 5,
        "steps_per_refresh": 2,
        "gradient_accumulation_steps": 2,
    }
    whole = start(tmp_path / "whole", settings)  # beside the others: most of their time is imports
    killed = tmp_path / "killed"
    process = start(killed, settings)
    metrics = killed / "metrics.jsonl"
    wait_for(process, metrics, 8)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    written = metrics.read_text().count("\n")
    assert 8 <= written < 24, "the kill came too late to show anything"
    with open(metrics, "a") as file:
        file.write('{"step": 99, "lo')  # as if it had come in the middle of a line
    finish(start(killed, settings, "resume"))
    finish(whole)
    assert exact(metrics) == exact(tmp_path / "whole/metrics.jsonl")
    assert lines(killed / "rollouts.jsonl") == lines(tmp_path / "whole/rollouts.jsonl")
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(killed)[name]), name


@pytest.mark.parametrize(
    "more",
    [{}, {"method": "sft"}, {"fixed_lambda": 2.0, "max_tokens_per_micro_batch": 150}, {"balance": "gradient"}],
    ids=["raft", "sft", "budget", "gradient"],
)
def test_two_ranks_equal_one(tmp_path, more):
    """The same global batches and greedy rollouts: the same losses, lambda, weights and saved state, up to rounding."""
    settings = {"max_steps": 2, "rollout_temperature": 0.0, "train_sampling_strategy": "sequential", **more}
    one, two = tmp_path / "one", tmp_path / "two"
    first = start(one, settings | {"per_device_train_batch_size": 4})
    finish(
        start(two, settings | {"per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 2}, ranks=2)
    )
    finish(first)
    for a, b in zip(exact(one / "metrics.jsonl"), exact(two / "metrics.jsonl"), strict=True):
        names = ("loss", "loss_sft", "loss_kl", "lambda", "grad_norm", "tokens", "rollout_length", "teacher_mass")
        assert ("gradient_kl" in a) == (more.get("balance") == "gradient")
        for name in (*names, "gradient_sft", "gradient_kl"):
            assert b.get(name) == (None if a.get(name) is None else pytest.approx(a[name], rel=1e-4)), name
    assert json.loads((two / "balance.json").read_text()) == pytest.approx(
        json.loads((one / "balance.json").read_text()), rel=1e-4
    )
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, weights(two)[name], rtol=0, atol=2e-4)
    assert {path.name for path in (two / "checkpoint-2").glob("raft_state*")} == {
        "raft_state_0.json",
        "raft_state_1.json",
    }


def test_ranks_whose_teachers_need_other_numbers_of_forwards(tmp_path):
    """Under LoRA the teacher is the student, which DDP wraps; one rank's short rollouts fit into fewer forwards."""
    settings = {
        "lora": True,
        "short_on_rank": 1,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "max_tokens_per_micro_batch": 248,
    }
    finish(start(tmp_path, settings, ranks=2))
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_signal_to_one_rank_stops_both_after_the_same_step(tmp_path):
    process = start(tmp_path, {"method": "sft", "num_train_epochs": 2000}, ranks=2)
    wait_for(process, tmp_path / "metrics.jsonl", 3)
    os.kill(int((tmp_path / "pid-1").read_text()), signal.SIGTERM)
    _, errors = process.communicate(timeout=600)
    assert process.returncode != 0 and b"stopped by SIGTERM" in errors
    saved = [path for path in tmp_path.glob("checkpoint-*")]
    assert len(saved) == 1 and len(list(saved[0].glob("raft_state_*.json"))) == 2
    assert f"checkpoint-{lines(tmp_path / 'metrics.jsonl')[-1]['step']}" == saved[0].name
