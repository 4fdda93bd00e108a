"""What this process sends to one server, whichever roles and threads ask it."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from raft.chat.limit import Limit

RESTING = 3
"""Requests that wait to be sent again, for each that may be in flight: with more, nothing new is sent. They would meet
a server that comes back all at once."""


@dataclass(eq=False)
class Place:
    """Of one request: it waits for room, is in flight, rests before it is sent again, or waits for room once more."""

    state: Literal["waits", "flies", "rests", "waits again"]
    wake: Callable[[], object]
    """Called when the request may be sent: `state` is "flies" then. From any thread."""


class Traffic:
    """Gives places to requests, in the order in which they ask; those that are sent again go first."""

    def __init__(self, most: int, requests_per_minute: float | None = None):
        """most: requests in flight at most, ever. requests_per_minute: None for no limit; repetitions do not count."""
        self.most = most
        self.pause = 60 / requests_per_minute if requests_per_minute else 0.0
        """Seconds between two requests."""
        self.in_flight = 0
        self._lock = threading.Lock()
        self._limit = Limit(most)
        self._resting = 0
        self._waiting: deque[Place] = deque()
        self._waiting_again: deque[Place] = deque()
        self._next_at = 0.0
        self._idle_since: float | None = None

    def ask(self, wake: Callable[[], object]) -> Place:
        place = Place("waits", wake)
        with self._lock:
            self._waiting.append(place)
            self._give()
        return place

    def rest(self, place: Place) -> None:
        """The request in flight waits before it is sent again: the server is not working on it."""
        with self._lock:
            self._leave(place)
            place.state = "rests"
            self._resting += 1
            self._give()

    def ask_again(self, place: Place, wake: Callable[[], object]) -> None:
        """The request has rested."""
        with self._lock:
            place.state, place.wake = "waits again", wake
            self._waiting_again.append(place)
            self._give()

    def end(self, place: Place) -> None:
        """The request has ended, or is given up."""
        with self._lock:
            self._leave(place)
            self._give()

    def hears(self, *, refused: bool) -> None:
        """The server has answered. refused: with the word that it has too much to do."""
        with self._lock:
            self._limit.heard(time.monotonic(), refused=refused)
            self._give()

    def look(self) -> None:
        """Gives the places for which it was too early: to be called now and then where there is a `pause`."""
        with self._lock:
            self._give()

    def _leave(self, place: Place) -> None:
        if place.state == "waits":
            self._waiting.remove(place)
        elif place.state == "flies":
            self.in_flight -= 1
            if not self.in_flight:
                self._idle_since = time.monotonic()
        else:
            self._resting -= 1
            if place.state == "waits again":
                self._waiting_again.remove(place)

    def _give(self) -> None:
        now = time.monotonic()
        while self._waiting_again and self.in_flight < self._limit.value:
            self._resting -= 1
            self._send(self._waiting_again.popleft(), now)
        while (
            self._waiting
            and self.in_flight < self._limit.value
            and self._resting < RESTING * self._limit.value
            and now >= self._next_at
        ):
            self._next_at = max(now, self._next_at) + self.pause
            self._send(self._waiting.popleft(), now)

    def _send(self, place: Place, now: float) -> None:
        if not self.in_flight:  # the server was idle, which says nothing of its speed
            self._limit.idled(now if self._idle_since is None else now - self._idle_since)
        self.in_flight += 1
        place.state = "flies"
        place.wake()
