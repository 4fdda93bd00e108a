"""Where the time of a step goes.

On a GPU the host only queues work, and waiting for the device around every part would stop it from running ahead. There a
part is a pair of events in the stream, and `reset` is the one place that waits; elsewhere a part is wall time.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PARTS = ("rollout", "teacher", "forward_backward", "optimizer", "refresh")
# From the step's first batch to its last record, parts and what lies between them.
WALL = "wall"
_MOST_EVENTS = 4096  # in flight at most: a run may never log


class Clock:
    """Seconds in each part, and in the steps as a whole, since the last `reset`."""

    def __init__(self, device: torch.device):
        self.device = device
        self._seconds = dict.fromkeys((*PARTS, WALL), 0.0)
        self._open: list[tuple[str, Any, Any]] = []
        self._mark = self._step = self._now()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = self._now()
        try:
            yield
        finally:
            self._mark = self._now()
            self._add(name, start, self._mark)

    def since_last_part(self, name: str) -> None:
        """Counts the time from the end of the last part until now as `name`."""
        now = self._now()
        self._add(name, self._mark, now)
        self._mark = now

    def begin_step(self) -> None:
        self._step = self._now()

    def end_step(self) -> None:
        self._add(WALL, self._step, self._now())

    def reset(self) -> dict[str, float]:
        """Seconds by part, WALL among them. Waits for the device."""
        self._settle()
        seconds, self._seconds = self._seconds, dict.fromkeys((*PARTS, WALL), 0.0)
        return seconds

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _add(self, name: str, start: Any, end: Any) -> None:
        if self.device.type != "cuda":
            self._seconds[name] += end - start
            return
        self._open.append((name, start, end))
        if len(self._open) > _MOST_EVENTS:
            self._settle()

    def _settle(self) -> None:
        if self._open:
            torch.cuda.synchronize(self.device)
        for name, start, end in self._open:
            self._seconds[name] += start.elapsed_time(end) / 1000
        self._open.clear()
