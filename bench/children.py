"""A run of several providers by turns: what it is given, what it finds, and what it leaves out."""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bench import files, machine
from bench.limits import Ceilings, ceilings
from bench.turns import Child, Failed
from bench.work import ON_GPU, WORKS, Work, real
from raft.real import DATA_DIR, REAL_MODEL

# GiB of memory on a CPU: a child that waits holds libraries, vLLM's cache, a small model and its optimizer; one works.
WAITING_GIB, WORKING_GIB = 1.2, 7
OUTPUT_LINES = 40  # of a child that failed: on a machine that keeps nothing its log goes


@dataclass
class Run:
    """A run: its circumstances, and what is left of it."""

    device: str
    device_name: str
    limit: Ceilings
    command: str
    out: Path | None
    state: str  # of the machine before the run
    found: list[dict[str, Any]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)  # what was left out, and why
    interrupted: bool = False
    failed: bool = False  # any child
    logs: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="raft-bench-")))  # the children's output

    def say(self, line: str) -> None:
        if line not in self.lines:
            self.lines.append(line)
        print(line, flush=True)

    def clean(self) -> None:
        """Removes the children's output, unless a line about a failure points to it."""
        shutil.rmtree(self.logs / "bytecode" if self.failed else self.logs, ignore_errors=True)

    def about(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in files.versions(machine.PACKAGES).items())
        return f"{self.device_name}: {self.state}; {self.limit}; {versions}; commit {files.commit()}"


@dataclass
class Measured:
    about: dict[str, Any]
    turns: list[Any] = field(default_factory=list)  # the first one warms up
    final: Any = None  # None where the run was interrupted before its end


def make_parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """Of a command, with what every such run may be told."""
    parser = argparse.ArgumentParser(
        prog=f"python -m bench {name}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model, one thread, no vLLM unless named")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    parser.add_argument("--models", type=works, help=f"comma-separated, of {', '.join(WORKS)}")
    parser.add_argument(
        "--model",
        nargs="?",
        const="",
        help=f"a checkpoint in place of --models (default: the one that {REAL_MODEL} names)",
    )
    parser.add_argument(
        "--data", default="", help=f"JSONL with its questions and answers; a name in {DATA_DIR}, or a path"
    )
    parser.add_argument("--batch", type=int, default=8, help="rows of a step, with --model (default: 8)")
    parser.add_argument("--threads", type=int, help="threads of a CPU run (default: torch's choice, quick 1)")
    parser.add_argument("--rollout-tokens", type=int, help="a rollout's most, in place of the model's own")
    parser.add_argument("--alone", action="store_true", help="one provider after the other, not by turns")
    parser.add_argument("--out", type=Path, help="the records; tables and picture go beside them")
    parser.add_argument("--records", type=Path, help="measure nothing, show these")
    return parser


def checkpoint(args: argparse.Namespace) -> Work:
    """What --model, --data and --batch ask for. ValueError where they do not say enough."""
    folder = args.model or os.environ.get(REAL_MODEL, "")
    path = Path(os.environ.get(DATA_DIR, ""), args.data)
    data = path if path.exists() else Path(args.data)
    if not folder:
        raise ValueError(f"--model: name a folder, here or in {REAL_MODEL}")
    if not args.data or not data.is_file():
        raise ValueError(f"--data: {args.data or 'missing'}; a file of rows goes with --model, here or in {DATA_DIR}")
    return real(folder, str(data.resolve()), args.batch)


def works(names: str) -> list[Work]:
    if unknown := [name for name in names.split(",") if name not in WORKS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} unknown; there are {', '.join(WORKS)}")
    return [WORKS[name] for name in names.split(",")]


def prepare(args: argparse.Namespace, name: str, argv: Sequence[str]) -> Run:
    """Settles device, models, threads and file names, and measures what the machine can do."""
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no GPU here")
    args.alone = args.alone or args.device == "cuda"
    if args.model is not None:
        try:
            args.models = [checkpoint(args)]
        except ValueError as error:
            raise SystemExit(str(error)) from error
    default = ["quick"] if args.quick else ON_GPU if args.device == "cuda" else ["cpu"]
    args.models = args.models or [WORKS[name] for name in default]
    if args.rollout_tokens:
        args.models = [replace(work, rollout_most=args.rollout_tokens) for work in args.models]
    state = machine.state()  # before anything of ours runs
    threads = args.threads or (1 if args.quick else torch.get_num_threads())
    torch.set_num_threads(threads)
    if args.threads or args.quick:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # for the children
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    device_name = machine.device_name(args.device, threads)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    limit = ceilings(args.device, dtype, args.quick)
    own = [args.models[0].name.lower()] if args.model is not None else []
    out = files.path_of(name, *own, device_name=device_name, out=args.out, quick=args.quick)
    run = Run(args.device, device_name, limit, files.command_of(name, argv), out, state)
    print(run.about(), flush=True)
    for missing, why in args.missing.items():
        run.say(f"{missing}: left out, {why}")
    return run


def measure_children(
    names: Sequence[str],
    work: str,  # "module:function" of a child
    arguments: Callable[[str], tuple[Any, ...]],  # from a name
    turns: Mapping[str, int],
    run: Run,
    *,
    alone: bool = False,
    prime: bool = True,
    exact_memory: bool = False,
) -> dict[str, Measured]:
    """Starts a child a name, lets them take turns, and gives what they handed in. One that fails is left out.

    alone: one works to its end before the next one starts. prime: where Python is told to write no bytecode, children
    start before the others only to compile what they import. exact_memory: as of `Child`.
    """
    logs, bytecode = run.logs, run.logs / "bytecode"
    free = machine.free_gib()
    if not alone and len(names) > 1 and free is not None and free < WAITING_GIB * len(names) + WORKING_GIB:
        run.say(f"{free:.0f} GiB are free, too little for {len(names)} processes side by side: one after the other")
        alone = True
    groups = [[name] for name in names] if alone else [list(names)]
    found: dict[str, Measured] = {}
    children: dict[str, Child] = {}

    def attempt(action: Callable[[str], None], name: str) -> None:
        try:
            action(name)
        except Failed as error:
            run.failed = True
            run.say(f"{name}: left out, {error}")
            children.pop(name).stop()
            print(f"its output, {logs / name}, ends with:\n{_end_of(logs / name)}", flush=True)
            found.pop(name, None)

    def begin(name: str) -> None:
        began = time.monotonic()
        children[name] = Child(
            work, *arguments(name), log=str(logs / name), bytecode=str(bytecode), exact_memory=exact_memory
        )
        found[name] = Measured(children[name].ready())
        print(f"{name}: ready after {time.monotonic() - began:.0f} s", flush=True)

    def turn(name: str) -> None:
        found[name].turns.append(children[name].turn())

    def end(name: str) -> None:
        found[name].final = children[name].finish()
        del children[name]

    try:
        if prime and sys.dont_write_bytecode and not bytecode.exists():
            # Who compiles a library first holds some 50 MiB more and starts later than those who find it compiled.
            for name in {name.partition("-")[0]: name for name in reversed(names)}.values():
                attempt(begin, name)
                if name in children:
                    children.pop(name).stop()
            found.clear()
        for group in groups:
            for name in group:
                attempt(begin, name)
            for number in range(max((turns[name] for name in group), default=0)):
                began = time.monotonic()
                for name in [name for name in group if name in children]:
                    attempt(turn, name)
                    if name in children and len(found[name].turns) == turns[name]:
                        attempt(end, name)
                print(f"round {number} of {', '.join(group)}: {time.monotonic() - began:.1f} s", flush=True)
    except KeyboardInterrupt:
        run.interrupted = True
        run.say("interrupted: what was measured before is kept")
    finally:
        for child in children.values():
            child.stop(patience_s=0.5 if run.interrupted else 10)
    return found


def _end_of(log: Path) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-OUTPUT_LINES:])
    except OSError:
        return ""
