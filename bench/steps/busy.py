"""The commands of `raft` on an idle machine and beside busy processes: how long a user waits where a machine is shared.

python -m bench busy --model FOLDER --data FILE    demo, refine, train, eval, generation; idle, then beside two others
python -m bench busy --tasks demo                  the micro-world alone needs neither a model nor data
python -m bench busy --before CHECKOUT             an earlier commit's idle times beside ours, by turns

A task is a whole command in a process of its own, from the shell to its last line. The others are processes that never
wait, at the same priority. Writes busy-cpu.json (records) and .md (the table) to bench/results.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.common import files, machine
from bench.common import records as common
from bench.common.goals import goal_line
from bench.common.options import choose, make_parser
from bench.steps.command import checkpoint
from bench.steps.work import make_rows

IDLE_GOAL, BUSY_GOAL = 1.1, 4.0  # times the idle time of an earlier commit, and of our own
PATIENCE_S = 1800.0  # for one command
ROWS, STEPS, TOKENS = 16, 4, 64
TASKS = ("demo", "refine", "train", "eval", "generate")


def commands(model: str, data: str, folder: Path) -> dict[str, list[str]]:
    """Arguments of `raft` for each task, in a run folder of its own."""
    given = ["--model", model, "--data", data]

    def run(name: str) -> list[str]:
        return ["--run", str(folder / name), "--overwrite"]

    lengths = [f"max_tokens={TOKENS}", "max_model_len=1024"]
    of_train = ["method=raft", f"max_steps={STEPS}", "per_device_train_batch_size=4", f"rollout_max_tokens={TOKENS}"]
    answer = [f"evaluate.{setting}" for setting in lengths]
    return {
        "demo": ["demo", *run("demo")],
        "refine": ["refine", *given, *run("refine"), *(f"refine.{setting}" for setting in lengths)],
        "train": ["train", *given, *run("train"), *(f"train.{setting}" for setting in [*of_train, "max_length=1024"])],
        "eval": ["eval", *given, *run("eval"), *answer],
        "generate": ["eval", *given, *run("generate"), *answer, "evaluate.engine=hf"],
    }


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """That many processes that want a core each, all the time."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def seconds(arguments: Sequence[str], checkout: Path, log: Path) -> float:
    """What `raft ARGUMENTS` of a checkout takes; SystemExit with the end of its output where it fails."""
    began = time.monotonic()
    with log.open("ab") as output:
        done = subprocess.run(
            [sys.executable, "-m", "raft", *arguments],
            check=False,
            cwd=checkout,
            stdout=output,
            stderr=output,
            timeout=PATIENCE_S,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
    if done.returncode:
        raise SystemExit(f"raft {' '.join(arguments)} ended with {done.returncode}:\n{log.read_text()[-2000:]}")
    return time.monotonic() - began


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("busy", __doc__)
    parser.add_argument("--model", help="a checkpoint (default: the one that RAFT_REAL_MODEL names)")
    parser.add_argument("--data", default="", help="JSONL with question and answer; a name in RAFT_DATA_DIR, or a path")
    parser.add_argument("--tasks", default="", help=f"comma-separated, of {', '.join(TASKS)} (default: all)")
    parser.add_argument("--busy", type=int, default=2, help="busy processes (default: 2)")
    parser.add_argument("--reps", type=int, default=1, help="runs of each command in each state (default: 1)")
    parser.add_argument("--before", type=Path, help="a checkout of an earlier commit")
    parser.add_argument("--out", type=Path, help="the records; the table goes beside them")
    args = parser.parse_args(argv)
    args.tasks = choose(parser, "--tasks", args.tasks, TASKS)
    if args.tasks != ["demo"]:
        args.batch = ROWS
        try:
            args.work = checkpoint(args)
        except ValueError as error:
            parser.error(str(error))
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    state = machine.state()
    print(state, flush=True)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="raft-busy-") as temporary:
        folder = Path(temporary)
        model, data = "", ""
        if hasattr(args, "work"):
            model, data = args.work.folder, str(_rows(args.work, folder / "rows.jsonl"))
        runs = commands(model, data, folder)
        for task in args.tasks:
            times = _times(runs[task], args, folder / f"{task}.log")
            found.append(
                {
                    "op": "command",
                    "task": task,
                    "model": Path(model).name if task != "demo" else "micro-world",
                    "device": f"cpu, {os.cpu_count()} cores",
                    "busy_processes": args.busy,
                    "seconds": {kind: [round(s, 1) for s in taken] for kind, taken in times.items()},
                    **files.origin(),
                    "before": files.commit(args.before) if args.before else None,
                    # Where a folder lies on this machine says nothing to others.
                    "command": files.command_of("busy", [Path(word).name if "/" in word else word for word in argv]),
                }
            )
            _write(args.out or files.RESULTS / "busy-cpu.json", found, state)
    print(f"\n{table(found)}\n\n" + "\n".join(summary(found)))
    return 0


def _times(arguments: Sequence[str], args: argparse.Namespace, log: Path) -> dict[str, list[float]]:
    """Seconds of every run of a command: before (where there is such a checkout), idle, busy."""
    times: dict[str, list[float]] = {}

    def time_it(kind: str, checkout: Path) -> None:
        times.setdefault(kind, []).append(seconds(arguments, checkout, log))
        print(f"{log.stem}, {kind}: {times[kind][-1]:.1f} s", flush=True)

    idle = {"before": args.before, "idle": files.ROOT} if args.before else {"idle": files.ROOT}
    for rep in range(args.reps):
        for kind in list(idle)[:: -1 if rep % 2 else 1]:  # the first one finds cold caches
            time_it(kind, idle[kind])
        with busy(args.busy):
            time_it("busy", files.ROOT)
    return times


HEAD = "| task | model | earlier commit, idle, s | idle, s | beside others, s | idle / earlier | beside / idle |"


def table(found: Sequence[dict[str, Any]]) -> str:
    rows = []
    for record in found:
        before, idle, beside = _medians(record)
        cells = [f"{before:.1f}" if before else "-", f"{idle:.1f}", f"{beside:.1f}"]
        cells += [f"{idle / before:.2f}" if before else "-", f"{beside / idle:.2f}"]
        rows.append([record["task"], record["model"], *cells])
    return common.table(HEAD, 2, rows)


def summary(found: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for record in found:
        before, idle, beside = _medians(record)
        task = record["task"]
        lines.append(goal_line(f"<= {BUSY_GOAL}", beside / idle, "of its idle time", f"{task} beside others "))
        if before:
            lines.append(goal_line(f"<= {IDLE_GOAL}", idle / before, "of the earlier commit's", f"{task} idle "))
    return lines


def _medians(record: dict[str, Any]) -> tuple[float | None, float, float]:
    """Seconds of an earlier commit, where it was measured; idle; beside others."""
    found = {kind: statistics.median(taken) for kind, taken in record["seconds"].items()}
    return found.get("before"), found["idle"], found["busy"]


def _rows(work: Any, path: Path) -> Path:
    """The first rows of the data, in a file of their own."""
    lines = [json.dumps({"question": row["question"], "answer": row["answer"]}) for row in make_rows(work)[:ROWS]]
    path.write_text("\n".join(lines) + "\n")
    return path


def _write(path: Path, found: list[dict[str, Any]], state: str) -> None:
    note = (
        f"Whole commands, their start included. {ROWS} rows; refine, eval and generate: at most {TOKENS} tokens an "
        f"answer; train: {STEPS} steps of 4 rows with rollouts as long; generate: eval with plain transformers "
        "(evaluate.engine=hf)."
    )
    goals = "\n".join(f"- {line}" for line in summary(found))
    earlier = f"; the earlier one is {found[0]['before']}" if found[0].get("before") else ""
    about = f"{state}; commit {found[0]['commit']}{earlier}"
    files.write_records(path, found, about, f"`{found[0]['command']}`", table(found), note, goals)
