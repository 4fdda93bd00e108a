"""Stages of `raft real` in parallel. Each is a process; all are ended when one fails or the user stops."""

import multiprocessing
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Protocol, Self, TypeVar

from raft.cpu import split_cpu
from raft.errors import RaftError

Result = TypeVar("Result")


class Child(Protocol):
    """A process."""

    def terminate(self) -> None: ...


ChildT = TypeVar("ChildT", bound=Child)


class Jobs:
    """Runs at most `at_once` functions at a time. With 1, a function runs in the thread that asks for its result."""

    def __init__(self, at_once: int = 1):
        self._pool = ThreadPoolExecutor(at_once) if at_once > 1 else None
        self._children: set[Child] = set()
        self._lock = threading.Lock()
        self._stopped = False
        self._error: BaseException | None = None  # the first error
        if at_once > 1:  # otherwise torch would use every core in each process
            split_cpu(at_once)

    def start(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """Returns a function that waits for `work` and returns its result, or raises the first error of any work."""
        if self._pool is None:
            return work
        future = self._pool.submit(self._watched, work)

        def result() -> Result:
            try:
                return future.result()
            except Exception as error:  # noqa: BLE001  # also a cancellation, or a process ended by `_stop`
                raise self._error or error from None

        return result

    def _watched(self, work: Callable[[], Result]) -> Result:
        try:
            return work()
        except BaseException as error:
            self._stop(error)
            raise

    def _stop(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error
            self._stopped = True
            for child in self._children:
                child.terminate()

    def call(self, words: Sequence[str]) -> int:
        """Run a command and return its exit code."""
        # A process group of its own: Ctrl-C then reaches this process only, which ends each of the others once.
        return self._run(lambda: subprocess.Popen(words, process_group=0), subprocess.Popen.wait).returncode

    def alone(self, work: Callable[..., None], *arguments: object) -> None:
        """Run `work(*arguments)` in a process that inherits nothing but its arguments. RaftError if it fails."""

        def begin() -> BaseProcess:
            process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
            process.start()
            return process

        process = self._run(begin, BaseProcess.join)
        if process.exitcode:
            raise RaftError(f"{work.__name__.strip('_')} {arguments[0]} ended with code {process.exitcode}")

    def _run(self, begin: Callable[[], ChildT], wait: Callable[[ChildT], object]) -> ChildT:
        if self._stopped:
            raise RaftError("another stage failed")
        process = begin()
        with self._lock:
            self._children.add(process)
            if self._stopped:  # while the process started
                process.terminate()
        try:
            wait(process)
        except BaseException:  # a signal (Ctrl-C) in the main thread
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
        if error is not None:
            self._stop(error)
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=error is not None)
        if error is None and self._error is not None:  # of work whose result was not asked for
            raise self._error
