"""Writing into run folders, and what a kill leaves behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.errors import InputError
from raft.runs import JsonlAppender, read_json, read_jsonl, repair_jsonl, write_json
from raft.runs.files import replacing

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


@pytest.mark.parametrize("torn", ["", '{"id": "torn", "text": "', '{"id": "torn"'])
@pytest.mark.parametrize("length", [10, 65_530, 65_536, 65_537, 200_000])
def test_lines_of_any_length_are_repaired_from_the_end(tmp_path, length, torn):
    path = tmp_path / "a.jsonl"
    whole = json.dumps({"id": "a", "text": "x" * length}) + "\n"
    path.write_text(whole + torn + "y" * (length if torn.endswith(' "') else 0))
    repair_jsonl(path)
    assert path.read_text() == whole
    path.write_text(whole.removesuffix("\n"))
    repair_jsonl(path)
    assert path.read_text() == whole


def test_a_file_is_replaced_only_as_a_whole(tmp_path):
    path = tmp_path / "folder" / "a.txt"
    with replacing(path) as file:
        file.write("old")
        assert not path.exists()
    with pytest.raises(KeyError), replacing(path) as file:
        file.write("a part of the ne")
        raise KeyError
    assert path.read_text() == "old" and [found.name for found in path.parent.iterdir()] == ["a.txt"]
    with replacing(path) as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


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
from raft.runs.signals import stop_on_signals
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
