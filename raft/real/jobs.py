"""Stages of `raft real` side by side: each a process of its own, all of them ended when one fails or the user stops."""

import multiprocessing
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

from raft.errors import RaftError

Result = TypeVar("Result")


class Jobs:
    """At most `at_once` pieces of work at a time. One: each when its result is asked for, in the caller's thread."""

    def __init__(self, at_once: int = 1):
        self.at_once = at_once
        self._pool = ThreadPoolExecutor(at_once) if at_once > 1 else None
        self._children: set[Any] = set()
        self._lock = threading.Lock()
        self._stopped = False
        if at_once > 1:  # torch would take every core in each of them
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // at_once)))

    def start(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """What waits for `work` and gives its result, or raises its error."""
        return work if self._pool is None else self._pool.submit(work).result

    def call(self, words: Sequence[str]) -> int:
        """The exit code of a command."""
        process = self._run(lambda: subprocess.Popen(words), subprocess.Popen.wait)
        code: int = process.returncode
        return code

    def alone(self, work: Callable[..., None], *arguments: Any) -> None:
        """`work(*arguments)` in a process that inherits nothing but its arguments. RaftError where it fails."""

        def begin() -> Any:
            process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
            process.start()
            return process

        process = self._run(begin, multiprocessing.Process.join)
        if process.exitcode:
            raise RaftError(f"{work.__name__.strip('_')} {arguments[0]} ended with code {process.exitcode}")

    def _run(self, begin: Callable[[], Any], wait: Callable[[Any], Any]) -> Any:
        if self._stopped:
            raise RaftError("another stage failed")
        process = begin()
        with self._lock:
            self._children.add(process)
            if self._stopped:  # meanwhile
                process.terminate()
        try:
            wait(process)
        except BaseException:  # a signal, in the main thread
            process.terminate()
            wait(process)
            raise
        finally:
            with self._lock:
                self._children.discard(process)
        return process

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            with self._lock:
                self._stopped = True
                for child in self._children:
                    child.terminate()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=kind is not None)
