"""How many requests an endpoint is given at once: more while that makes it faster, fewer once it refuses some."""


class Limit:
    """Doubles at first, later grows by a quarter, after each group of as many answers as were in flight, 16 at least.

    Halved where the endpoint refused more than half of a group for now (429, 503, or late in all repetitions, which
    counts once). It soon does so where it is full, since it refuses faster than it answers; fewer refusals may come by
    chance, whatever the limit. The group after that was asked before and says nothing. Taken back where the last growth
    made the answers later and not more: less than a twentieth more a second. Then it waits for `PATIENCE` groups before
    it tries again, since an endpoint that others use may have room later.
    """

    GROUP = 16
    """Answers that decide at least: of fewer, half may be refused by chance."""
    PATIENCE = 4

    def __init__(self, most: int, start: int = 8):
        """most: requests in flight at most, ever. start: before the first answer."""
        self.value = min(start, most)
        self._most = most
        self._doubles = True
        self._before: tuple[int, float] | None = None  # value and answers a second before the last growth
        self._wait = 0
        self._settles = False
        self._answers, self._refused, self._since = 0, 0, 0.0

    def idled(self, seconds: float) -> None:
        """So long nothing was asked. The first time: since the beginning of the clock."""
        self._since += seconds

    def heard(self, now: float, *, refused: bool) -> None:
        """After each answer, refusals too. now: seconds on any clock. refused: the endpoint was too busy."""
        self._answers += 1
        self._refused += refused
        if self._answers < max(self.value, self.GROUP):
            return
        rate = (self._answers - self._refused) / max(now - self._since, 1e-9)
        if self._settles:
            self._settles = False  # this group was asked under the old limit
        elif self._refused > self._answers / 2:
            self._set(max(1, self.value // 2), None)
            self._settles = True
        elif self._wait:
            self._wait -= 1
        elif self._before is not None and rate < 1.05 * self._before[1]:
            self._set(self._before[0], None)
            self._wait = self.PATIENCE
        else:
            self._set(self.value * 2 if self._doubles else self.value + max(1, self.value // 4), (self.value, rate))
        self._answers, self._refused, self._since = 0, 0, now

    def _set(self, value: int, before: tuple[int, float] | None) -> None:
        value = min(value, self._most)
        if before is None:
            self._doubles = False
        self._before = before if value > self.value else None
        self.value = value
