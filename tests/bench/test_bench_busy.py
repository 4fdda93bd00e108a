"""`bench busy`: what it runs, the load that it makes, and its table."""

import json
import os
import time

import pytest

from bench.steps import busy
from raft import cli
from raft.settings import load_config
from raft.train.config import check_train

RECORD = {
    "task": "demo",
    "model": "micro-world",
    "busy_processes": 2,
    "seconds": {"before": [100.0], "idle": [120.0, 110.0, 100.0], "busy": [550.0]},
    "commit": "abc",
    "command": "python -m bench busy",
}


def test_every_command_is_one_that_raft_takes(tmp_path):
    runs = busy.commands("model", "rows.jsonl", tmp_path)
    assert list(runs) == list(busy.TASKS)
    for task, arguments in runs.items():
        args = cli._arguments(arguments)
        assert args.run == str(tmp_path / task) and args.overwrite
        section = {"refine": "refine", "train": "train", "eval": "evaluate", "generate": "evaluate"}.get(task)
        if section:
            config = load_config(None, args.settings, section=section)
            if section == "train":
                assert check_train(config).max_steps == busy.STEPS
            elif section == "evaluate":
                assert config.evaluate.engine == ("hf" if task == "generate" else "auto")


def test_others_are_busy_and_go(tmp_path):
    def seconds_of_children():
        return sum(os.times()[2:4])

    before = seconds_of_children()
    with busy.busy(2):
        time.sleep(1)
    assert seconds_of_children() - before > 0.2  # of two seconds, on whatever else this machine does


def test_a_command_is_timed_to_its_end(tmp_path):
    assert busy.seconds(["--version"], busy.files.RESULTS.parents[1], tmp_path / "log") > 0
    assert (tmp_path / "log").read_text().startswith("raft ")
    with pytest.raises(SystemExit, match="no such run folder"):
        busy.seconds(["report", "--run", str(tmp_path / "none")], busy.files.RESULTS.parents[1], tmp_path / "log")


def test_a_run_writes_records_and_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(busy, "commands", lambda *_: {"demo": ["--version"]})
    out = tmp_path / "busy.json"
    assert busy.main(["--tasks", "demo", "--busy", "1", "--reps", "2", "--out", str(out)]) == 0
    (record,) = json.loads(out.read_text())
    assert len(record["seconds"]["idle"]) == len(record["seconds"]["busy"]) == 2 and "before" not in record["seconds"]
    assert record["command"] == "python -m bench busy --tasks demo --busy 1 --reps 2"
    text = out.with_suffix(".md").read_text()
    assert "| demo | micro-world | - |" in text and "goal: demo beside others <= 4.0 of its idle time" in text
    assert "| demo | micro-world |" in capsys.readouterr().out


def test_medians_and_goals():
    assert "| demo | micro-world | 100.0 | 110.0 | 550.0 | 1.10 | 5.00 |" in busy.table([RECORD])
    assert busy.summary([RECORD]) == [
        "goal: demo beside others <= 4.0 of its idle time: 5.00 missed",
        "goal: demo idle <= 1.1 of the earlier commit's: 1.10 met",
    ]


@pytest.mark.parametrize(
    "argv, found", [(["--tasks", "dmo"], "dmo unknown"), (["--tasks", "eval", "--model", "/none"], "--data: missing")]
)
def test_bad_input_is_one_line(argv, found, capsys, monkeypatch):
    monkeypatch.delenv("RAFT_REAL_MODEL", raising=False)
    with pytest.raises(SystemExit):
        busy.parse(argv)
    assert found in capsys.readouterr().err
