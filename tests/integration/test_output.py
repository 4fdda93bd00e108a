"""What a command prints into a log file: its own lines and nothing else."""

import json
import re
import subprocess
import sys

import pytest

from raft.demo.settings import BASE_MODEL

OWN = re.compile(
    r"raft: |train: |refine: |refined |no row has |vLLM engine ready|starting vLLM: |answer: |domain |\s*$"
)


def raft(*arguments):
    command = [sys.executable, "-m", "raft", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.vllm
def test_a_log_file_has_our_lines_alone(tmp_path):
    """No bars, no warnings about memory that cannot be pinned, file times, or the engine's process group."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"question": f"What is {i}?", "answer": f"It is {i}."}) + "\n" for i in range(8))
    )
    common = ["--model", BASE_MODEL, "--data", rows, "--run", tmp_path / "run"]
    lengths = ["rollout_max_tokens=8", "max_length=128", "per_device_train_batch_size=2", "max_steps=4"]
    # A checkpoint after every step: older ones are removed within the same second.
    settings = [*lengths, "save_strategy=steps", "save_steps=1"]
    trained = raft("train", *common, *(f"train.{setting}" for setting in settings))
    assert trained.returncode == 0, trained.stderr
    said = trained.stderr + trained.stdout
    foreign = [line for line in said.splitlines() if not OWN.match(line)]
    assert not foreign and "\r" not in said
    assert re.search(r"^train: 4 steps in ", said, re.MULTILINE)
