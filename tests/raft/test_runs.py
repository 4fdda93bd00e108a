"""Run folders: opening them, writing into them, and what a kill leaves behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.errors import InputError, RunFolderError
from raft.runs import JsonlAppender, open_run, read_json, read_jsonl, repair_jsonl, write_json

ROOT = Path(__file__).parents[2]


def start(code: str, *arguments: object) -> subprocess.Popen:
    """A Python process in the repository root; it says a line when it is where the test wants it."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def fill(run: Path, *names: str) -> None:
    for name in names:
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


def names(run: Path) -> set[str]:
    return {path.name for path in run.iterdir() if path.name != ".raft-run"}


def test_a_new_or_empty_folder_is_opened(tmp_path):
    run = open_run(tmp_path / "a" / "b")
    assert run.path.is_dir()
    assert (run.refine_dir, run.train_dir) == (run.path / "refine", run.path / "train")
    assert (run.model_dir, run.eval_dir) == (run.path / "model", run.path / "eval")
    assert open_run(run.path).path == run.path  # nothing but the marker is in it


def test_an_existing_run_needs_a_choice(tmp_path):
    open_run(tmp_path / "run")
    fill(tmp_path / "run", "refine/rewrite.jsonl", "config.yaml")
    with pytest.raises(RunFolderError, match=r"exists \(config.yaml, refine\); give --resume .* or --overwrite"):
        open_run(tmp_path / "run")
    open_run(tmp_path / "run", resume=True)
    assert names(tmp_path / "run") == {"refine", "config.yaml"}
    open_run(tmp_path / "run", overwrite=True)
    assert names(tmp_path / "run") == set()


def test_overwrite_leaves_what_no_run_writes(tmp_path):
    run = open_run(tmp_path / "run")
    fill(run.path, "notes.txt", "refine/fused.jsonl", "model/config.json", "data/train.jsonl", "seconds.json")
    open_run(run.path, overwrite=True)
    assert names(run.path) == {"notes.txt"}


def test_overwrite_does_not_follow_links(tmp_path):
    fill(tmp_path, "elsewhere/precious.txt")
    run = open_run(tmp_path / "run")
    (run.path / "model").symlink_to(tmp_path / "elsewhere")
    open_run(run.path, overwrite=True)
    assert (tmp_path / "elsewhere" / "precious.txt").exists() and names(run.path) == set()


def test_overwrite_refuses_a_folder_that_no_run_made(tmp_path):
    fill(tmp_path, "data/precious.csv", "model/weights")
    with pytest.raises(RunFolderError, match="no run made this folder"):
        open_run(tmp_path, overwrite=True)
    assert (tmp_path / "data" / "precious.csv").exists()


def test_training_goes_beside_the_refinement_and_replaces_only_itself(tmp_path):
    run = open_run(tmp_path / "run")
    fill(run.path, "config.yaml", "refine/fused.jsonl")
    open_run(run.path, stage="train")
    fill(run.path, "train/metrics.jsonl", "model/config.json", "eval/raft.json", "report.html")
    with pytest.raises(RunFolderError, match=r"exists \(model, train\)"):
        open_run(run.path, stage="train")
    open_run(run.path, stage="train", resume=True)
    open_run(run.path, stage="train", overwrite=True)
    assert names(run.path) == {"config.yaml", "refine"}


def test_training_does_not_start_in_a_folder_of_something_else(tmp_path):
    fill(tmp_path, "thesis.tex")
    with pytest.raises(RunFolderError, match="thesis.tex"):
        open_run(tmp_path, stage="train")


def test_what_cannot_be_a_run(tmp_path):
    fill(tmp_path, "file")
    with pytest.raises(RunFolderError, match="found a file"):
        open_run(tmp_path / "file")
    with pytest.raises(RunFolderError, match="cannot be written"):
        open_run(tmp_path / "file" / "run")
    with pytest.raises(RunFolderError, match="nothing to resume"):
        open_run(tmp_path / "typo", resume=True)
    with pytest.raises(RunFolderError, match="found both"):
        open_run(tmp_path / "typo", resume=True, overwrite=True)
    assert not (tmp_path / "typo").exists()


def test_two_processes_do_not_work_in_one_run(tmp_path):
    code = "import sys, time; from raft.runs import open_run; open_run(sys.argv[1]); print('open', flush=True); time.sleep(60)"
    other = start(code, tmp_path / "run")
    try:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(RunFolderError, match=f"process {other.pid} is working"):
            open_run(tmp_path / "run", resume=True)
    finally:
        other.kill()
        other.communicate()
    open_run(tmp_path / "run", resume=True)  # a kill frees it


def test_only_the_first_rank_prepares_the_folder(tmp_path, monkeypatch):
    run = open_run(tmp_path / "run")
    fill(run.path, "refine/fused.jsonl")
    monkeypatch.setenv("RANK", "1")
    open_run(run.path, overwrite=True)
    assert names(run.path) == {"refine"}


def test_json_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"ä": [1, None]})
    assert read_json(path) == {"ä": [1, None]}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"ä": [1, None]}
    assert os.listdir(path.parent) == ["a.json"]


def test_broken_json_names_its_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.json"):
        read_json(tmp_path / "none.json")
    fill(tmp_path, "bad.json")
    with pytest.raises(InputError, match=r"bad\.json"):
        read_json(tmp_path / "bad.json")


LINES = [{"id": "0", "text": "ä\n"}, {"id": "1", "text": ""}, {"id": "2", "nested": {"a": [1.5]}}]
DATA = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in LINES).encode()


@given(st.integers(0, len(DATA)))
def test_a_kill_at_any_byte_costs_at_most_the_line_in_flight(tmp_path_factory, length):
    path = tmp_path_factory.mktemp("torn") / "a.jsonl"
    path.write_bytes(DATA[:length])
    whole = DATA[:length].count(b"\n")
    before = read_jsonl(path)
    assert before == LINES[: len(before)] and len(before) - whole in (0, 1)
    with JsonlAppender(path) as lines:
        lines.append({"id": "new"})
    assert read_jsonl(path) == [*before, {"id": "new"}]
    assert path.read_bytes().endswith(b'\n{"id": "new"}\n') or not before


def test_repair_keeps_whole_files_as_they_are(tmp_path):
    path = tmp_path / "a.jsonl"
    repair_jsonl(path)
    assert not path.exists() and read_jsonl(path) == []
    path.write_bytes(DATA)
    repair_jsonl(path)
    assert path.read_bytes() == DATA


def test_a_broken_line_before_the_last_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(InputError, match=r"a\.jsonl, line 2"):
        read_jsonl(path)
    path.write_text('{"a": 1}\n[2]\n')
    with pytest.raises(InputError, match="line 2: expected one JSON object, found list"):
        read_jsonl(path)


def test_every_line_is_on_disk_at_once(tmp_path):
    lines = JsonlAppender(tmp_path / "new" / "a.jsonl")
    lines.append({"id": "0"})
    assert read_jsonl(lines.path) == [{"id": "0"}]
    lines.close()


WAIT = """
import sys, time
from raft.errors import Interrupted
from raft.runs import stop_on_signals
try:
    with stop_on_signals():
        try:
            print("ready", flush=True)
            time.sleep(60)
        except Exception:
            print("swallowed", flush=True)
        finally:
            print("cleaning up", flush=True)
            time.sleep(float(sys.argv[1]))
except Interrupted as stop:
    print(stop)
    sys.exit(stop.exit_code)
"""


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_stops_in_good_order_past_every_except_exception(number, name):
    process = start(WAIT, 0)
    process.stdout.readline()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert out.startswith("cleaning up\n") and f"stopped by {name}" in out and "--resume" in out
    assert err == ""


def test_a_second_signal_ends_at_once():
    process = start(WAIT, 60)
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "cleaning up\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
