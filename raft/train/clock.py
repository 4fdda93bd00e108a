"""Seconds that each part of a training step takes.

On a GPU the host queues work ahead of the device, and must not wait for it after each part. There a part is measured by
a pair of CUDA events, which only `reset` waits for. On a CPU a part is measured by wall time.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PARTS = ("rollout", "teacher", "forward_backward", "optimizer", "refresh")
# The whole step, including what is between the parts.
WALL = "wall"
_MOST_EVENTS = 4096  # pending pairs of events at most, for runs that never log


class Clock:
    """Seconds in each part and in whole steps since the last `reset`."""

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
        """Seconds by part, WALL included, since the last call. Waits for the device."""
        self._settle()
        seconds, self._seconds = self._seconds, dict.fromkeys((*PARTS, WALL), 0.0)
        return seconds

    def _now(self) -> Any:
        """Seconds, or on a GPU an event. `_add` takes two of a kind."""
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
