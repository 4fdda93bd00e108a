"""Children that take turns: none works outside its turn, and one that fails costs the others nothing."""

import json
import os
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from bench.common import children, files
from bench.common.children import ChildRun, measure_children
from bench.common.limits import Ceilings
from bench.common.turns import Child, Failed
from bench.common.view import View

WORK = "tests.bench.bench_children"


def make_run(logs, out=None):
    return ChildRun(
        device="cpu",
        device_name="cpu, 1 thread",
        state="idle",
        limit=Ceilings(1e11, 1e10),
        command="python -m bench train",
        out=out,
        logs=logs,
    )


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


def test_a_child_has_a_process_of_its_own(tmp_path):
    child = Child(f"{WORK}:count", 2, log=str(tmp_path / "log"), exact_memory=True, bytecode=str(tmp_path / "compiled"))
    assert child.ready() == {"turns": 2}
    assert [child.turn(), child.turn()] == [0, 10]
    found = child.finish()
    assert found["pid"] != os.getpid() and found["threshold"] == "65536"
    assert (found["prefix"] == str(tmp_path / "compiled")) == sys.dont_write_bytecode
    assert "MALLOC_MMAP_THRESHOLD_" not in os.environ
    child.stop()


@pytest.mark.slow
def test_who_fails_is_left_out(monkeypatch, run, capsys):
    works = {"good": "count", "broken": "fail", "dead": "die", "absent": "no_such_function"}
    monkeypatch.setattr(children, "Child", lambda work, name, **options: Child(f"{WORK}:{works[name]}", 3, **options))
    found = measure_children("", lambda name, turns: (name,), dict.fromkeys(works, 3), run, prime=False)
    assert list(found) == ["good"] and found["good"].turns == [0, 10, 20] and found["good"].final["pid"]
    assert sorted(run.lines) == [
        "absent: left out, AttributeError: module 'tests.bench.bench_children' has no attribute 'no_such_function'",
        "broken: left out, ValueError: no such kernel",
        "dead: left out, its process ended with exit code 3",
    ]
    assert "a long story" in (run.logs / "broken").read_text()
    out = capsys.readouterr().out
    assert f"its output, {run.logs / 'dead'}, ends with:\n" in out
    assert "a long story" in out and "ValueError: no such kernel" in out  # the log may be gone when somebody looks


class Fake:
    """A child without a process."""

    log: ClassVar[list[str]] = []

    def __init__(self, work, name, **options):
        self.name = name
        self.log.append(f"start {name}")

    def ready(self):
        return {}

    def turn(self):
        self.log.append(self.name)
        if self.name == "impatient":
            raise KeyboardInterrupt
        if self.name == "hung":
            raise Failed("no answer for 1800 s")
        return self.name

    def finish(self):
        self.log.append(f"end {self.name}")
        return {}

    def stop(self, patience_s=10):
        self.log.append(f"stop {self.name}")


@pytest.fixture
def fakes(monkeypatch):
    monkeypatch.setattr(children, "Child", Fake)
    monkeypatch.setattr(children.sys, "dont_write_bytecode", False)
    monkeypatch.setattr(children.machine, "free_gib", lambda: 100.0)
    monkeypatch.setattr(Fake, "log", [])
    return Fake.log


def measure(names, run, turns=2, **options):
    given = {name: 1 if name == "b" else turns for name in names}
    return measure_children("", lambda name, turns: (name,), given, run, **options)


def test_turns_go_round(run, fakes):
    found = measure(["a", "b"], run)
    assert fakes == ["start a", "start b", "a", "b", "end b", "a", "end a"]
    assert list(found) == ["a", "b"] and found["a"].turns == ["a", "a"]


def test_alone_means_one_after_the_other(run, fakes):
    measure(["a", "b"], run, alone=True)
    assert fakes == ["start a", "a", "a", "end a", "start b", "b", "end b"]


def test_a_machine_of_little_memory_runs_them_alone(run, fakes, monkeypatch):
    monkeypatch.setattr(children.machine, "free_gib", lambda: 9.3)
    measure(["a", "b"], run)
    assert fakes == ["start a", "a", "a", "end a", "start b", "b", "end b"]
    assert run.lines == ["9 GiB are free, too little for 2 processes side by side: one after the other"]


def test_without_bytecode_a_first_child_compiles_for_the_others(run, fakes, monkeypatch):
    monkeypatch.setattr(children.sys, "dont_write_bytecode", True)
    found = measure(["a", "b"], run)
    assert fakes[:6] == ["start b", "stop b", "start a", "stop a", "start a", "start b"]
    assert list(found) == ["a", "b"]


def test_what_was_measured_before_an_interruption_is_kept(run, fakes):
    found = measure(["a", "hung", "impatient"], run)
    assert run.interrupted and run.lines == [
        "hung: left out, no answer for 1800 s",
        "interrupted: what was measured before is kept",
    ]
    assert found["a"].turns == ["a"] and found["a"].final is None
    assert fakes[-2:] == ["stop a", "stop impatient"] and "stop hung" in fakes


def test_where_records_go():
    def name(benchmark, device_name="cpu, 2 threads", **options):
        found = files.path_of(benchmark, device_name=device_name, **options)
        return found and found.name

    assert name("train") == "train-cpu.json" and name("train", quick=True) is None
    assert name("rollout", "NVIDIA H200") == "rollout-h200.json"
    assert name("rollout", "NVIDIA H200", out=Path("x.json")) == "x.json"
    assert files.short_name("NVIDIA H100 80GB HBM3") == "h100-80gb-hbm3"


def test_what_was_measured_of_a_model_is_on_disk_before_the_next_one(monkeypatch, tmp_path, capsys):
    """And an interruption ends the run: the next model would have no time."""
    from bench.steps import command

    seen = []

    def measure(work, args, run):
        seen.append((work, (tmp_path / "r.json").exists()))
        if work == "second":
            run.interrupted = True
        run.found.append({"model": work})

    view = View(lambda found: "", "", lambda found: [], lambda *args: [])
    made = make_run(tmp_path / "logs", tmp_path / "r.json")
    monkeypatch.setattr(command, "prepare", lambda *args: made)

    class Args:
        records, models = None, ["first", "second", "third"]

    assert command.run_models(view, "train", Args, [], measure) == 130
    assert seen == [("first", False), ("second", True)]
    assert [r["model"] for r in json.loads((tmp_path / "r.json").read_text())] == ["first", "second"]
    made.found, made.interrupted, Args.models = [], False, []
    assert command.run_models(view, "train", Args, [], measure) == 1  # nothing was measured
