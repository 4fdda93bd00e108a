"""Where the time of a step goes, as wall time: the device is waited for at both ends of every part."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PARTS = ("rollout", "teacher", "forward_backward", "optimizer", "refresh")


class Clock:
    """Seconds in each part since the last `reset`."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._mark = self.now()

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = self.now()
        try:
            yield
        finally:
            self._mark = self.now()
            self.seconds[name] += self._mark - start

    def since_last_part(self, name: str) -> None:
        """Counts the time from the end of the last part until now as `name`."""
        now = self.now()
        self.seconds[name] += now - self._mark
        self._mark = now

    def reset(self) -> dict[str, float]:
        seconds, self.seconds = self.seconds, dict.fromkeys(PARTS, 0.0)
        return seconds
