"""`kill -9` in every stage of the demo: what comes out is what an uninterrupted run gives, and nothing is done or
written twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raft.report.load import Summary

pytestmark = pytest.mark.timeout(900)

# The demo on a part of its world, with plain transformers as engine: vLLM would only add its start to every restart.
DRIVER = """
import sys
from pathlib import Path
from raft.demo.comparison import run_demo
from raft.demo.settings import GridPoint, DemoSettings
from raft.runs.folder import open_run
folder, resume = Path(sys.argv[1]), sys.argv[2] == "resume"
point = GridPoint(5e-4, 2)
settings = DemoSettings(point, point, validate_every=1, engine="hf", train_rows=48, every_item=40)
run_demo(open_run(folder, "demo", resume=resume), seed=7, resume=resume, settings=settings)
"""


def start(folder: Path, resume: bool) -> subprocess.Popen:
    arguments = [sys.executable, "-c", DRIVER, str(folder), "resume" if resume else "new"]
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def lines(path: Path) -> list[dict]:
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def kill_when(folder: Path, resume: bool, reached: Callable[[], bool]) -> None:
    """Starts the demo and kills it as soon as it has got that far."""
    process = start(folder, resume)
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the demo did not get that far"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """An uninterrupted run, and one that was killed in each stage."""
    whole, killed = tmp_path_factory.mktemp("demo") / "whole", tmp_path_factory.mktemp("demo") / "killed"
    process = start(whole, resume=False)
    output = process.communicate()[0]
    assert process.returncode == 0, output

    baseline = killed / "baselines" / "sft"
    stages: list[Callable[[], bool]] = [
        lambda: len(lines(killed / "refine" / "rewrite.jsonl")) > 0,
        lambda: len(lines(baseline / "train" / "metrics.jsonl")) >= 5,  # past the checkpoint of the first epoch
        lambda: (baseline / "model").exists(),  # scoring SFT
        lambda: len(lines(killed / "train" / "metrics.jsonl")) >= 2,  # before the first checkpoint
        lambda: len(lines(killed / "train" / "metrics.jsonl")) >= 5,
    ]
    for number, reached in enumerate(stages):
        kill_when(killed, number > 0, reached)
    process = start(killed, resume=True)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return whole, killed


def test_same_refined_rows_and_none_twice(runs):
    whole, killed = runs
    assert (whole / "refine" / "fused.jsonl").read_text() == (killed / "refine" / "fused.jsonl").read_text()
    for stage in ("rewrite", "filter", "fuse", "judge"):
        expected, found = (_keys(run / "refine" / f"{stage}.jsonl") for run in runs)
        assert len(found) == len(set(found)), f"{stage}.jsonl has a line twice"
        assert sorted(found) == sorted(expected), stage


def _keys(path: Path) -> list[str]:
    """Of each line what makes it another one than the others; the key holds a hash of the texts."""
    return [json.dumps([line["id"], line.get("round"), line["key"]]) for line in lines(path)]


@pytest.mark.parametrize("method", ["baselines/sft", "."])
def test_same_loss_curve_and_no_step_twice(runs, method):
    whole, killed = (lines(run / method / "train" / "metrics.jsonl") for run in runs)
    assert [line["step"] for line in whole] == list(range(1, 7))
    for name in ("step", "loss", "loss_sft", "loss_kl", "lambda", "grad_norm", "learning_rate"):
        assert [line.get(name) for line in killed] == [line.get(name) for line in whole], name


@pytest.mark.parametrize("method", ["baselines/sft", "."])
def test_same_validation_curve(runs, method):
    whole, killed = (lines(run / method / "train" / "validation.jsonl") for run in runs)
    assert len(whole) == 3 and killed == whole


def test_same_scores(runs):
    whole, killed = (json.loads((run / "summary.json").read_text()) for run in runs)
    assert set(whole) == Summary.__optional_keys__
    assert killed["scores"] == whole["scores"]
    assert set(whole["scores"]) == {"base", "sft", "raft"} and set(whole["n"]) == {"domain", "general", "format"}


def test_report_is_there(runs):
    for run in runs:
        assert "<table" in (run / "report.html").read_text() and (run / "report.md").exists()
