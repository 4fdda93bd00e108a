"""Refinement at scale: a server that fails, one request at a time against batches, and memory by the number of rows.

python -m bench refine                        all three parts, on the micro-world's model and data
python -m bench refine --parts server,memory  some of them

server: 2,000 rows of a server of which a third of all answers fails, against the same server without a fault. batches:
the engine of this process one request at a time, and `refine.batch_size` at a time. memory: the peak of whole
commands, for the first and the last number of `--rows`. Writes refine-cpu.json and .md to bench/results.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.common import files, machine
from bench.common import records as common
from bench.common.goals import goal_line
from bench.common.options import choose, make_parser

PARTS = ("server", "batches", "memory")
LATENCY_S = 0.05
WORKING = 64  # requests that the server answers at once; others wait


def rows(n: int) -> list[dict[str, str]]:
    """Rows whose answers a program can rewrite: a sentence of made-up words and numbers each."""
    return [
        {
            "id": f"r{i}",
            "question": f"What is kept in store {i}?",
            "answer": f"Store {i} holds {i % 97 + 3} crates of copper pipes, sent by the foundry in week {i % 52 + 1}, and "
            "they may be taken out by the keeper alone.",
        }
        for i in range(n)
    ]


def reply(body: Mapping[str, Any], n: int, *, faulty: bool) -> Any:
    """The last paragraph of the prompt, which is the reference; a third of the answers is a fault, drawn by the prompt."""
    from tests.raft.chat_server import BROKEN, CUT, Answer

    asked = body["messages"][-1]["content"]
    draw = int.from_bytes(hashlib.blake2b(f"{asked} {n}".encode(), digest_size=4).digest(), "big")
    if faulty and draw % 3 == 0:
        faults = [
            Answer("slow down", status=429, headers={"Retry-After": "0.1"}),
            Answer("broken", status=500),
            Answer(fault=CUT),
            Answer(fault=BROKEN),
        ]
        return faults[draw // 3 % len(faults)]
    return Answer(asked.rpartition("\n\n")[2], seconds=LATENCY_S)


def refine(folder: Path, n: int, faulty: bool, model: str) -> dict[str, float]:
    """One `raft refine` of n rows with a server: seconds of the rewriting, and the peak of memory in MiB."""
    from tests.raft.chat_server import chat_server

    data = folder / f"rows-{n}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(n)))
    run = folder / f"run-{n}-{faulty}"
    with chat_server(lambda body, times: reply(body, times, faulty=faulty), at_once=WORKING) as server:
        name = server.name()
        given = ["--model", model, "--data", str(data), "--run", str(run), "--overwrite"]
        settings = [f"refine.rewriter={name}", f"refine.fuser={name}", f"refine.concurrency={4 * WORKING}"]
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "raft", "refine", *given, *settings],
            cwd=files.ROOT,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        store, first, last = run / "refine" / "rewrite.jsonl", None, began
        seen = 0
        while process.poll() is None:
            time.sleep(0.02)
            lines = store.read_bytes().count(b"\n") if seen < n and store.exists() else seen
            if lines > seen:
                first, last, seen = first or time.monotonic(), time.monotonic(), lines
        _, status, used = os.wait4(process.pid, 0) if process.returncode is None else (0, process.returncode, None)
    if process.returncode or seen < n:
        raise SystemExit(f"raft refine ended with {process.returncode}, {seen} of {n} rows rewritten")
    return {"seconds": last - (first or began), "peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}
