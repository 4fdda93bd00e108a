"""Children that take turns: what each is given, what it finds, and which of them are left out."""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.common import machine
from bench.common.run import BenchRun
from bench.common.turns import Child, Failed

# GiB of memory on a CPU: a child that waits holds libraries, vLLM's cache, a small model and its optimizer; one works.
WAITING_GIB, WORKING_GIB = 1.2, 7
OUTPUT_LINES = 40  # of a child that failed, printed: on a machine that keeps nothing its log is lost


@dataclass(kw_only=True)
class ChildRun(BenchRun):
    """A run whose providers each have a process of their own."""

    failed: bool = False  # any child
    logs: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="raft-bench-")))  # the children's output

    def clean(self) -> None:
        """Removes the children's output, unless a line about a failure points to it."""
        shutil.rmtree(self.logs / "bytecode" if self.failed else self.logs, ignore_errors=True)


@dataclass
class ChildResult:
    """What one child handed in."""

    about: dict[str, Any]
    turns: list[Any] = field(default_factory=list)  # the first one warms up
    final: Any = None  # None where the run was interrupted before its end


def measure_children(
    work: str,  # "module:function" of a child
    arguments: Callable[[str, int], tuple[Any, ...]],  # of the function, from a name and its number of turns
    turns: Mapping[str, int],  # by name: how many each child takes
    run: ChildRun,
    *,
    alone: bool = False,
    prime: bool = True,
    exact_memory: bool = False,
) -> dict[str, ChildResult]:
    """Starts a child for each name, lets them take turns, and gives what they handed in. One that fails is left out.

    alone: one works to its end before the next one starts. prime: where Python is told to write no bytecode, a child of
    each kind first starts only to compile what it imports. exact_memory: as of `Child`.
    """
    names = list(turns)
    logs, bytecode = run.logs, run.logs / "bytecode"
    free = machine.free_gib()
    if not alone and len(names) > 1 and free is not None and free < WAITING_GIB * len(names) + WORKING_GIB:
        run.say(f"{free:.0f} GiB are free, too little for {len(names)} processes side by side: one after the other")
        alone = True
    groups = [[name] for name in names] if alone else [names]
    found: dict[str, ChildResult] = {}
    children: dict[str, Child] = {}

    def attempt(action: Callable[[str], None], name: str) -> None:
        try:
            action(name)
        except Failed as error:
            run.failed = True
            run.leave_out(name, error)
            children.pop(name).stop()
            print(f"its output, {logs / name}, ends with:\n{_end_of(logs / name)}", flush=True)
            found.pop(name, None)

    def begin(name: str) -> None:
        began = time.monotonic()
        children[name] = Child(
            work, *arguments(name, turns[name]), log=str(logs / name), bytecode=str(bytecode), exact_memory=exact_memory
        )
        found[name] = ChildResult(children[name].ready())
        print(f"{name}: ready after {time.monotonic() - began:.0f} s", flush=True)

    def turn(name: str) -> None:
        found[name].turns.append(children[name].turn())

    def end(name: str) -> None:
        found[name].final = children[name].finish()
        del children[name]

    try:
        if prime and sys.dont_write_bytecode and not bytecode.exists():
            # A child that compiles a library holds some 50 MiB more and starts later than one that finds it compiled.
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
        run.interrupt()
    finally:
        for child in children.values():
            child.stop(patience_s=0.5 if run.interrupted else 10)
    return found


def _end_of(log: Path) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-OUTPUT_LINES:])
    except OSError:
        return ""
