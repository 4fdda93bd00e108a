"""Turns Ctrl-C and SIGTERM into an error with a one-line message."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from raft.errors import Interrupted


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Within it, the first SIGINT or SIGTERM raises `Interrupted` in the main thread; a second ends the process."""

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def stop(signum: int, frame: object) -> None:
        for number in old:
            signal.signal(number, signal.SIG_DFL)
        name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
        raise Interrupted(
            f"stopped by {name}; what is done is saved: demo, real, refine and train go on with --resume", signum
        )

    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in old:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
