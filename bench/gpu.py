"""All measurements on a GPU, in one command and in minutes: correctness, time by kernel, tuning, peers, memory, a step.

python -m bench gpu --minutes 9 --out DIR
python -m bench gpu --minutes 9 --out DIR --only env,point,profile
python -m bench gpu --minutes 4 --out DIR --device cpu      the same way at tiny sizes: that it runs, not how fast

Stages run one after the other, each in a process group of its own: one that crashes, hangs or loses the GPU costs its
own time only. At its limit a stage is interrupted, so that it saves what it has, and killed some seconds later. After
each stage DIR/results.tgz (records and logs) and DIR/stages.json (name, code, seconds, skipped, tail) are complete.
`python -m bench records DIR/results.tgz` puts the records into bench/results.

Needs torch, triton, numpy, transformers, accelerate and pytest; peers and vLLM are used where they are installed.
BENCH_COMMIT says which commit is measured, where the checkout's own history does not.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bench.archive import pack
from bench.common.files import ROOT, commit, write
from bench.common.options import choose, make_parser
from bench.gpu_stages import Stage, stages

GRACE_S = 4.0  # between an interruption and the end
RESERVE_S = 3.0  # for the last archive
TAIL_LINES = 12


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("gpu", __doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="all stages together (default: 9)")
    parser.add_argument("--out", type=Path, required=True, help="the folder for results.tgz and stages.json")
    parser.add_argument("--only", help="comma-separated stages")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    args = parser.parse_args(argv)
    found = stages(args.device)
    wanted = choose(parser, "--only", args.only, [stage.name for stage in found])
    args.stages = [stage for stage in found if stage.name in wanted]
    if (args.out / "results.tgz").exists():
        parser.error(f"--out: {args.out} holds the results of an earlier call; name another folder")
    if args.device == "cuda" and shutil.which("nvidia-smi") is None:
        parser.error(
            "there is no NVIDIA GPU here (nvidia-smi is not on the PATH); --device cpu runs the same at tiny sizes"
        )
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    ends = time.monotonic() + 60 * args.minutes - RESERVE_S
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="raft-gpu-", ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        for part in ("results", "logs"):
            (work / part).mkdir()
        done: list[dict[str, Any]] = []
        interrupted = False
        for stage in args.stages:
            try:
                done.append(run(stage, work, ends))
            except KeyboardInterrupt:
                interrupted = True
                done.append(_row(stage, None, 0.0, "interrupted"))
            publish(done, work, args.out)
            if interrupted:
                break
    print(table(done), flush=True)
    print(f"records: {args.out / 'results.tgz'}", flush=True)
    return 130 if interrupted else int(any(r["code"] not in (None, 0) for r in done))


def run(stage: Stage, work: Path, ends: float) -> dict[str, Any]:
    """Runs one stage; `ends`: when all time is over, by the monotonic clock."""
    left = ends - time.monotonic()
    why_not = stage.absent(work / "results")
    if why_not is None and left < stage.least_s:
        why_not = f"{max(left, 0):.0f} s are left, it takes {stage.least_s:.0f} at least"
    if why_not is not None:
        print(f"{stage.name}: skipped, {why_not}", flush=True)
        return _row(stage, None, 0.0, why_not)
    limit = min(stage.limit_s, left - GRACE_S)
    command = [sys.executable, *stage.words]
    print(f"{stage.name}: at most {limit:.0f} s", flush=True)
    began = time.monotonic()
    log = work / "logs" / f"{stage.name}.txt"
    with open(log, "wb") as file, _default_interrupt():
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(stage, work),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        with suppress(subprocess.TimeoutExpired):
            child.wait(limit)
        late = child.poll() is None
        if late:
            _signal(child, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                child.wait(GRACE_S)
    finally:
        _signal(child, signal.SIGKILL)  # and whatever it has left running
        with suppress(subprocess.TimeoutExpired):  # a process that is stuck in the driver cannot be killed
            child.wait(GRACE_S)
    seconds = time.monotonic() - began
    if late:
        with open(log, "a") as file_of_text:
            file_of_text.write(f"\nstopped at its limit of {limit:.0f} s\n")
    print(f"{stage.name}: exit code {child.returncode} after {seconds:.0f} s", flush=True)
    return _row(stage, child.returncode, seconds, None, _tail(log))


def environment(stage: Stage, work: Path) -> dict[str, str]:
    """Records go to the archive, the stages share compiled modules, and nothing is downloaded."""
    own = {
        "BENCH_RESULTS": str(work / "results"),
        "BENCH_COMMIT": commit(),
        "PYTHONUNBUFFERED": "1",
        "PYTHONPYCACHEPREFIX": str(work / "bytecode"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return inherited | own | stage.environment


@contextmanager
def _default_interrupt() -> Iterator[None]:
    """A process that a shell started in the background ignores interruptions, and its children would too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _signal(child: subprocess.Popen[bytes], which: signal.Signals) -> None:
    """To its whole process group, whose number is its own; nothing happens where all of the group has ended."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, which)


def _tail(log: Path) -> str:
    """The last lines, without those that name files of the folder that is about to be removed."""
    lines = log.read_text(errors="replace").rstrip().splitlines()
    return "\n".join([line for line in lines if not line.startswith(("records: ", "picture: "))][-TAIL_LINES:])


def _row(stage: Stage, code: int | None, seconds: float, skipped: str | None, tail: str = "") -> dict[str, Any]:
    return {"name": stage.name, "code": code, "seconds": round(seconds, 1), "skipped": skipped, "tail": tail}


def publish(done: Sequence[dict[str, Any]], work: Path, out: Path) -> None:
    text = json.dumps(done, indent=1) + "\n"
    try:
        write(work / "stages.json", text)
        pack(work, out / "results.tgz")
        write(out / "stages.json", text)
    except OSError as error:  # a file that went while it was packed, a full disk: the next stage tries again
        print(f"the archive was not renewed: {error}", flush=True)


def table(done: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'stage':16} {'code':>4} {'seconds':>8}  last line"]
    for r in done:
        code = "-" if r["code"] is None else str(r["code"])
        last = r["skipped"] and f"skipped: {r['skipped']}" or (r["tail"].splitlines() or ["(no output)"])[-1]
        lines.append(f"{r['name']:16} {code:>4} {r['seconds']:8.1f}  {last[:100]}")
    return "\n".join(lines)
