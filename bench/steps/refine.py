"""Refinement at scale: a server that fails, one request at a time against batches, and memory by the number of rows.

python -m bench refine                        all three parts, on the micro-world's model and data
python -m bench refine --parts server,memory  some of them

server: 2,000 rows of a server of which a third of all answers fails, against the same server without a fault. batches:
the engine of this process one request at a time, and `refine.batch_size` at a time. memory: the peak of whole
commands, for the first and the last number of `--rows`. Writes refine-cpu.json and .md to bench/results.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from bench.common import files, machine
from bench.common.goals import goal_line
from bench.common.options import choose, make_parser
from bench.common.records import digits
from raft.demo.settings import BASE_MODEL

PARTS = ("server", "batches", "memory")
LATENCY_S = 0.05
TURNS = 5
"""Of the server with and without faults; medians count. How long the last of the repeated requests rest is chance."""
WORKING = 64  # requests that the server answers at once; others wait


def rows(n: int) -> list[dict[str, str]]:
    """Rows whose answers a program can rewrite: a sentence of made-up words and numbers each."""
    return [
        {
            "id": f"r{i}",
            "question": f"What is kept in store {i}?",
            "answer": f"Store {i} holds {i % 97 + 3} crates of copper pipes, sent by the foundry in week {i % 52 + 1}, "
            "and they may be taken out by the keeper alone.",
        }
        for i in range(n)
    ]


def reply(body: Mapping[str, Any], n: int, *, faulty: bool) -> Any:
    """The last paragraph of the prompt, which is the reference. Where faulty, a third of the answers is a fault, drawn
    by the prompt and by how often it came."""
    from tests.raft.chat_server import Answer, drawn_fault

    asked = body["messages"][-1]["content"]
    if faulty and (fault := drawn_fault(asked, n)):
        return fault
    return Answer(asked.rpartition("\n\n")[2], seconds=LATENCY_S)


def with_server(folder: Path, n: int, *, faulty: bool) -> dict[str, float]:
    """One `raft refine` of n rows with a server: seconds of the rewriting, and the peak of memory in MiB."""
    from tests.raft.chat_server import chat_server

    data, run = folder / f"rows-{n}.jsonl", folder / f"run-{n}-{faulty}"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(n)))
    with chat_server(lambda body, times: reply(body, times, faulty=faulty), at_once=WORKING) as server:
        given = ["--model", str(BASE_MODEL), "--data", str(data), "--run", str(run)]
        settings = [f"refine.{role}={server.name()}" for role in ("rewriter", "fuser")]
        command = [sys.executable, "-m", "raft", "refine", *given, *settings, f"refine.concurrency={4 * WORKING}"]
        process = subprocess.Popen(command, cwd=files.ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        store, times, seen, ended = run / "refine" / "rewrite.jsonl", [time.monotonic()], 0, 0
        while not ended:  # os.wait4 alone tells the memory of one process, and only the first time it has ended
            time.sleep(0.02)
            lines = store.read_bytes().count(b"\n") if store.exists() and seen < n else seen
            if lines > seen:
                times.append(time.monotonic())
                seen = lines
            ended, status, used = os.wait4(process.pid, os.WNOHANG)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"raft refine ended with {process.returncode}")
    return {"seconds": times[-1] - times[1], "peak_mib": used.ru_maxrss / 1024}


def in_batches(folder: Path, n: int) -> dict[str, float]:
    """Rows a second of the engine of this process: one request at a time, and in batches."""
    from raft.demo.settings import DOMAIN, REFINE
    from raft.demo.world import draw_world
    from raft.engines import make_engine
    from raft.models import load_model, load_tokenizer
    from raft.refine import refine
    from raft.refine.context import Models
    from raft.refine.embed import load_embedder
    from raft.rows import normalize_rows
    from raft.runs import Run

    model, tokenizer = load_model(BASE_MODEL), load_tokenizer(BASE_MODEL)
    engine = make_engine("auto", model, tokenizer, max_model_len=REFINE.max_model_len)
    embedder = load_embedder("minilm")
    given = normalize_rows(draw_world(DOMAIN, seed=0).train[:n])
    found = {}
    try:
        for name, size in [("warm-up", 64), ("sequential", 1), ("batches", 64)]:
            settings = replace(REFINE, batch_size=size)
            models = Models.local(name, engine, settings, embedder=embedder)
            began = time.monotonic()
            refine(given, models, Run(folder / name), settings, progress=False)
            found[name] = len(given) / (time.monotonic() - began)
    finally:
        engine.close()
    return found


def main(argv: list[str]) -> int:
    parser = make_parser("refine", __doc__)
    parser.add_argument("--parts", default="", help=f"comma-separated, of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--rows", type=int, nargs=2, default=[1_000, 50_000], help="for memory (default: 1000 50000)")
    parser.add_argument("--server-rows", type=int, default=2_000, help="for the server (default: 2000)")
    parser.add_argument("--out", type=Path, help="the records; the table goes beside them")
    args = parser.parse_args(argv)
    state = machine.state()
    print(state, flush=True)
    found: list[dict[str, Any]] = []

    def keep(part: str, **numbers: float) -> None:
        about = {"op": "refine", "part": part, "device": f"cpu, {os.cpu_count()} cores"}
        rounded = {name: digits(value) for name, value in numbers.items()}
        found.append({**about, **rounded, **files.origin(), "command": files.command_of("refine", argv)})
        print(f"{part}: {', '.join(f'{name} {value:g}' for name, value in rounded.items())}", flush=True)

    with tempfile.TemporaryDirectory(prefix="raft-refine-") as temporary:
        folder = Path(temporary)
        chosen = choose(parser, "--parts", args.parts, PARTS)
        if "server" in chosen:
            n = args.server_rows
            found_s: dict[bool, list[float]] = {False: [], True: []}
            for i in range(TURNS):
                for fails, seconds in found_s.items():
                    (turn := folder / f"turn-{i}").mkdir(exist_ok=True)
                    seconds.append(with_server(turn, n, faulty=fails)["seconds"])
            sound, faulty = (n / median(seconds) for seconds in found_s.values())
            keep("server", rows=n, sound_rows_s=sound, faulty_rows_s=faulty)
        if "batches" in chosen:
            made = in_batches(folder, 200)
            keep("batches", rows=200, sequential_rows_s=made["sequential"], batches_rows_s=made["batches"])
        if "memory" in chosen:
            few, many = args.rows
            peaks = [with_server(folder, n, faulty=False)["peak_mib"] for n in args.rows]
            keep("memory", few=few, few_mib=peaks[0], many=many, many_mib=peaks[1])
    lines = summary(found)
    page = ["# Refinement at scale", f"{state}; commit {found[0]['commit']}", "\n".join(f"- {line}" for line in lines)]
    files.write_records(args.out or files.RESULTS / "refine-cpu.json", found, *page)
    print("\n".join(lines))
    return 0


def summary(found: Sequence[dict[str, Any]]) -> list[str]:
    """One line for each part: its figures and its goal."""
    parts = {record["part"]: record for record in found}
    lines = []
    if record := parts.get("server"):
        # Of three answers two are good, so that a server that works on as many requests gives two thirds of the rows.
        share = record["faulty_rows_s"] / (record["sound_rows_s"] * 2 / 3)
        what = f"{record['rows']:,.0f} rows, {record['sound_rows_s']:.0f} rows/s without faults and "
        what += f"{record['faulty_rows_s']:.0f} where a third of the answers fails, "
        lines.append(goal_line(">= 0.8", share, "of what the good answers allow", what))
    if record := parts.get("batches"):
        ratio = record["batches_rows_s"] / record["sequential_rows_s"]
        what = f"{record['batches_rows_s']:.1f} rows/s in batches, {record['sequential_rows_s']:.2f} one by one, "
        lines.append(goal_line(">= 5", ratio, "times", what))
    if record := parts.get("memory"):
        growth = (record["many_mib"] - record["few_mib"]) * 1024 / (record["many"] - record["few"])
        what = f"peak {record['few_mib']:,.0f} MiB with {record['few']:,.0f} rows, {record['many_mib']:,.0f} with "
        what += f"{record['many']:,.0f}: {growth:.1f} KiB a row, "
        lines.append(goal_line("<= 1.1", record["many_mib"] / record["few_mib"], "times", what))
    return lines
