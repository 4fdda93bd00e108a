"""The process of one child: each provider has one of its own, and only one of them works at a time.

A process of its own, so that peaks of memory and the global state of a library are its own. By turns, so that a drift
of the machine affects all of them alike, while each starts, compiles and warms up once.
"""

import importlib
import logging
import multiprocessing
import os
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

MMAP_THRESHOLD = "MALLOC_MMAP_THRESHOLD_"  # of glibc
PATIENCE_S = 1800.0  # for a start or a turn; more means that it hangs


class Failed(Exception):
    """A child that could not go on, and why."""


class Desk:
    """The child's end: work begins when `go` returns, and its result is handed in."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def ready(self, about: dict[str, Any]) -> None:
        self._connection.send(("ready", about))

    def go(self) -> None:
        """Waits for the next turn."""
        self._connection.recv()

    def hand_in(self, result: Any) -> None:
        self._connection.send(("turn", result))


class Child:
    """The parent's end."""

    def __init__(
        self,
        work: str,
        *arguments: Any,
        log: str = os.devnull,
        bytecode: str | None = None,
        exact_memory: bool = False,
    ):
        """Runs `work`, "module:function", as `function(desk, *arguments)` in a fresh Python; `finish` gives its result.

        log: the file for its output. bytecode: a folder for compiled modules, where Python is told to write none:
        otherwise each child would spend most of its start on compiling transformers. exact_memory: what it frees goes
        back to the system at once (with glibc), so that its peak is what it needed, without what glibc would keep for
        later; every page of a new tensor then costs a page fault, so nothing may be timed.
        """
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(theirs, work, arguments, log, bytecode), daemon=True)
        before = os.environ.get(MMAP_THRESHOLD)
        try:
            if exact_memory:
                os.environ[MMAP_THRESHOLD] = str(1 << 16)  # glibc raises it as it goes unless it is set
            self._process.start()
        finally:
            os.environ.pop(MMAP_THRESHOLD, None) if before is None else os.environ.update({MMAP_THRESHOLD: before})
        theirs.close()

    def ready(self) -> dict[str, Any]:
        return self._receive("ready")

    def turn(self) -> Any:
        self._connection.send("go")
        return self._receive("turn")

    def finish(self) -> Any:
        """What the child returns after its last turn; its process is over then."""
        result = self._receive("done")
        self.stop()
        return result

    def stop(self, patience_s: float = 10) -> None:
        self._connection.close()  # a child that waits for a turn ends then
        for harder in (self._process.terminate, self._process.kill):
            self._process.join(patience_s)
            if self._process.is_alive():
                harder()
        self._process.join()

    def _receive(self, expected: str) -> Any:
        if not self._connection.poll(PATIENCE_S):
            raise Failed(f"no answer for {PATIENCE_S:.0f} s")
        try:
            kind, content = self._connection.recv()
        except EOFError:
            self._process.join()
            raise Failed(f"its process ended with exit code {self._process.exitcode}") from None
        if kind == "failed":
            raise Failed(content)
        assert kind == expected, f"expected {expected!r} from a child, found {kind!r}"
        return content


def _run(connection: Connection, work: str, arguments: tuple[Any, ...], log: str, bytecode: str | None) -> None:
    _redirect(log)
    if bytecode and sys.dont_write_bytecode:
        sys.dont_write_bytecode, sys.pycache_prefix = False, bytecode
    module, _, function = work.partition(":")
    try:
        call = getattr(importlib.import_module(module), function)
        connection.send(("done", call(Desk(connection), *arguments)))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):  # the parent has ended, or needs the child no more
        pass
    except Exception as error:  # noqa: BLE001  # the other providers are measured however one fails
        from bench.common.failures import reason

        traceback.print_exc()
        connection.send(("failed", reason(error)))


def _redirect(log: str) -> None:
    """What libraries print goes to the log, that of C++ code included."""
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    logging.captureWarnings(True)
