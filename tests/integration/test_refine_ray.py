"""Stage 1 on a Ray cluster of this machine: the rows of one process, also when a worker is killed in the middle."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from raft.runs import read_jsonl
from tests.integration.test_refine_endpoints import command, environment, reply, row
from tests.raft.chat_server import chat_server
from tests.tiny import build

pytest.importorskip("ray.data", reason="needs Ray")
ROWS = 96


def workers() -> list[int]:
    """Processes that refine parts."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                name, variables = ((folder / file).read_bytes() for file in ("cmdline", "environ"))
            except OSError:
                continue
            if b"ray::" in name and b"Worker" in name and b"test_workers_make_the_rows" in variables:
                found.append(int(folder.name))
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_make_the_rows_of_one_process_also_when_one_is_killed(tmp_path):
    model, data = build("llama", tmp_path / "model"), tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(row(i)) + "\n" for i in range(ROWS)))
    runs = {name: tmp_path / name for name in ("alone", "ray")}
    with chat_server(reply) as server:
        name = server.name("writer")
        settings = [f"refine.rewriter={name}", f"refine.fuser={name}", "refine.batch_size=8", "refine.concurrency=4"]
        for where, run in runs.items():
            options = ("--executor", "ray", "--workers", "2") if where == "ray" else ()
            process = subprocess.Popen(
                command(model, data, run, *settings, options=options),
                env=environment(), cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            killed: list[int] = []
            parts = run / "refine" / "parts"
            while where == "ray" and not killed and process.poll() is None:
                time.sleep(0.05)
                if sum(file.stat().st_size > 0 for file in parts.glob("*/fuse.jsonl")) >= 2 and (found := workers()):
                    killed = found[:1]
                    os.kill(killed[0], signal.SIGKILL)
            printed = process.communicate()[0]
            assert process.returncode == 0, printed
            assert where == "alone" or killed
    names = ("fused", "failed")
    alone, ray = ({name: read_jsonl(run / "refine" / f"{name}.jsonl") for name in names} for run in runs.values())
    assert alone == ray and len(alone["fused"]) == ROWS
    assert not (runs["ray"] / "refine" / "parts").exists()
    for stage in ("rewrite", "filter", "fuse", "judge"):
        made = [sorted(map(json.dumps, read_jsonl(run / "refine" / f"{stage}.jsonl"))) for run in runs.values()]
        assert made[0] == made[1], stage


def test_a_cluster_that_cannot_be_reached_is_one_line(tmp_path):
    model, data = build("llama", tmp_path / "model"), tmp_path / "d.jsonl"
    data.write_text(json.dumps(row(0)) + "\n")
    with chat_server(reply) as server:
        settings = [f"refine.{role}={server.name('writer')}" for role in ("rewriter", "fuser")]
        done = subprocess.run(
            command(model, data, tmp_path / "run", *settings, options=("--executor", "ray")),
            env={**environment(), "RAY_ADDRESS": "nowhere://x"},
            cwd=tmp_path, text=True, capture_output=True, check=False,
        )  # fmt: skip
    assert done.returncode and "Traceback" not in done.stderr
    assert "Ray: no cluster could be reached at nowhere://x: " in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run" / "refine" / "parts").exists()
