"""What this process sends to one server, whichever roles and threads ask it."""

import threading
import time

from raft.chat.limit import Limit

RESTING = 3
"""Requests that wait to be sent again, for each that may be in flight: with more, nothing new is sent. They would meet
a server that comes back all at once."""


class Traffic:
    """Counts requests in flight, and says when there is room for one more.

    A request that waits before it is sent again rests: the server is not working on it, so another one may be sent.
    """

    def __init__(self, most: int, requests_per_minute: float | None = None):
        """most: requests in flight at most, ever. requests_per_minute: None for no limit; repetitions do not count."""
        self._lock = threading.Lock()
        self.most = most
        self._limit = Limit(most)
        self._pause = 60 / requests_per_minute if requests_per_minute else 0.0  # seconds between two requests
        self._next_at = 0.0
        self._resting = 0
        self.in_flight = 0

    def admit(self) -> float:
        """0.0 where one more request may be sent, which then counts as in flight. Else seconds after which to ask
        again; sooner when a request has ended or rests."""
        now = time.monotonic()
        with self._lock:
            if self.in_flight >= self._limit.value or self._resting >= RESTING * self._limit.value:
                return 0.2
            if now < self._next_at:
                return self._next_at - now
            if not self.in_flight and not self._resting:
                self._limit.began(now)  # the server was idle, which says nothing of its speed
            self._next_at = max(now, self._next_at) + self._pause
            self.in_flight += 1
            return 0.0

    def hears(self, *, refused: bool) -> None:
        """The server has answered. refused: with the word that it has too much to do."""
        with self._lock:
            self._limit.heard(time.monotonic(), refused=refused)

    def rest(self) -> None:
        with self._lock:
            self.in_flight -= 1
            self._resting += 1

    def resume(self) -> None:
        """A request that rested is sent again, whether there is room or not."""
        with self._lock:
            self.in_flight += 1
            self._resting -= 1

    def end(self, *, rested: bool) -> None:
        """A request has ended, or was given up. rested: it did at that time."""
        with self._lock:
            if rested:
                self._resting -= 1
            else:
                self.in_flight -= 1
