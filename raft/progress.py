"""Progress of long phases: a bar on a terminal, elsewhere a line every 30 s and one at the end.

`Progress` is opened by the code that knows the amount of work. An engine, or other code that processes many items in
one call, need not know it: it opens a `call` and reports finished items, which the innermost `Progress` shows:

    refine: fuse: 100 of 252 rows, 37 of 100 in this call, 1.2 rows/s, kept 84.0 %, 240 tokens/s, 2:07 left
"""

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from tqdm import tqdm

EVERY_S = 30.0  # between two lines
REDRAW_S = 1.0  # between two drawings of a bar whose numbers do not change, to update its clock
LEAST_REDRAW_S = 0.1  # between two drawings at least

_open: list["Progress"] = []  # the innermost is last


class Progress:
    """One phase of work; a context manager. It writes to stderr, on rank 0 only.

    total: number of `unit`s; None if unknown, as for the start of an engine: then only the time is shown.
    per_call: an item of a `call` is one `unit`, so that the running call counts for rate and time left.
    final: print a summary line at the end, or leave the full bar on the terminal. Not without a total.
    stream: used instead of stderr, see `lasting_stderr`.
    """

    _said: ClassVar[float] = 0.0  # time at which any phase last printed a line

    def __init__(
        self,
        label: str,
        total: int | None = None,
        unit: str = "row",
        *,
        done: int = 0,
        per_call: bool = False,
        final: bool = True,
        show: bool = True,
        stream: IO[str] | None = None,
    ):
        self._label, self._total, self._unit = label, total, unit
        self._done, self._fresh, self._per_call, self._final = done, 0, per_call, final and total is not None
        self._show = show and os.environ.get("RANK", "0") == "0"
        self._figures: Sequence[str] = ()
        self._call: Call | None = None
        self._start = self._drawn = time.monotonic()
        self._before = 0.0  # seconds until the last stop
        self._stream = stream
        self._bar: tqdm | None = None
        self._end = threading.Event()
        self._ticker: threading.Thread | None = None

    def add(self, items: int, *, fresh: int | None = None, figures: Sequence[str] | None = None) -> None:
        """Counts `items` as done, `fresh` of them (default: all) by this run. figures: further texts to show."""
        self._done += items
        self._fresh += items if fresh is None else fresh
        if figures is not None:
            self._figures = figures
        if self._bar is not None and time.monotonic() - self._drawn >= LEAST_REDRAW_S:
            self._redraw(self._bar)

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self._start, 1e-9)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.stop(whole=kind is None)

    def start(self) -> Self:
        """Also after a stop: then the phase goes on, and the time in between does not count."""
        self._start = time.monotonic() - self._before
        if not self._show or self._total == 0:
            return self
        self._end = threading.Event()
        if not _open and not self._before:
            Progress._said = time.monotonic()
        stream = self._stream or sys.stderr
        if getattr(stream, "isatty", lambda: False)():
            bar = self._draw(stream)
            if bar.disable:  # TQDM_DISABLE
                self._show = False
                return self
            self._bar = bar
            if self._before:
                bar.start_t -= self._before
                self._redraw(bar)
        _open.append(self)
        self._ticker = threading.Thread(
            target=self._tick, args=(self._end,), name=f"progress of {self._label}", daemon=True
        )
        self._ticker.start()
        return self

    def stop(self, whole: bool = True, *, pause: bool = False) -> None:
        """Ends the phase; further calls do nothing. whole: False after an error, to print no summary. pause: the phase
        will be started again; nothing is printed, and no bar is left."""
        self._before = self.seconds
        if self not in _open:
            return
        _open.remove(self)
        self._end.set()
        if self._ticker is not None:
            self._ticker.join(timeout=1)  # it may be blocked by writing to a terminal that is gone
        if self._bar is not None:
            self._redraw(self._bar)
            self._bar.leave = self._bar.leave and not pause
            self._bar.close()
            self._bar = None
        elif self._final and whole and not pause:
            self._print(self._summary())

    def _draw(self, stream: IO[str]) -> "tqdm":
        from tqdm import tqdm

        label = self._label.rpartition(": ")[2]  # the last part only, to save columns
        if self._total is None:
            return tqdm(desc=label, file=stream, leave=False, bar_format="{desc}: {elapsed}")
        return tqdm(
            desc=label,
            total=self._total,
            initial=self._done,
            unit=self._unit,
            file=stream,
            leave=self._final and not _open,
            dynamic_ncols=True,
            smoothing=0,  # rate and time left from the average since the start, as in the lines
        )

    def _redraw(self, bar: "tqdm") -> None:
        self._drawn = time.monotonic()
        if self._total is not None:
            bar.n = self._done + self._from_call()
            bar.initial = bar.n - self._made()  # items of an earlier run do not count for the rate
            bar.set_postfix_str(self._that_fit(bar), refresh=False)
        bar.refresh()

    def _tick(self, end: threading.Event) -> None:
        """Shows the progress at intervals, in a thread of its own, since one call of the work may take minutes."""
        while not end.wait(self._pause()):
            if _open[-1:] != [self]:
                continue
            if self._bar is not None:
                self._redraw(self._bar)
            elif self._pause() == 0:
                self._print(self._where())

    def _pause(self) -> float:
        """Seconds until the next line or drawing, or until the next check whether this phase is the innermost."""
        if self._bar is not None or _open[-1:] != [self]:
            return min(REDRAW_S, EVERY_S)
        return max(0.0, Progress._said + EVERY_S - time.monotonic())

    def _where(self) -> list[str]:
        if self._total is None:
            return [f"{clock(self.seconds)} so far"]
        return [
            f"{self._done} of {amount(self._total, self._unit)}",
            *self._call_so_far(),
            *self._rate(),
            *self._shown(),
            *self._left(self._total),
        ]

    def _summary(self) -> list[str]:
        before = self._done - self._fresh
        earlier = [f"{before} of them done before"] if before else []
        return [f"{amount(self._done, self._unit)} in {self.seconds:.1f} s", *earlier, *self._rate(), *self._shown()]

    def _shown(self) -> Sequence[str]:
        """The figures at this moment."""
        return self._figures

    def _call_so_far(self) -> list[str]:
        call = self._call
        return [] if call is None or call.total < 2 else [f"{call.done} of {call.total} in this call"]

    def _from_call(self) -> int:
        """Units that the running call has finished."""
        return self._call.done if self._per_call and self._call is not None else 0

    def _made(self) -> int:
        return self._fresh + self._from_call()

    def _rate(self) -> list[str]:
        made = self._made()
        if not made:
            return []
        rate = made / self.seconds
        return [f"{rate:,.1f} {self._unit}s/s" if rate >= 1 else f"{1 / rate:,.1f} s/{self._unit}"]

    def _left(self, total: int) -> list[str]:
        made = self._made()
        ahead = total - self._done - self._from_call()
        return [f"{clock(ahead * self.seconds / made)} left"] if made and ahead > 0 else []

    def _that_fit(self, bar: "tqdm") -> str:
        """The first figures, as many as leave ten columns for the bar."""
        meter = bar.format_dict
        bare = bar.format_meter(**{**meter, "ncols": None, "postfix": None})  # draws a bar of ten columns
        room = (meter["ncols"] or 80) - len(bare)
        text = ""
        for figure in self._shown():
            longer = f"{text}, {figure}" if text else figure
            if len(longer) + 2 > room:
                break
            text = longer
        return text

    def _print(self, parts: Sequence[str]) -> None:
        Progress._said = time.monotonic()
        with suppress(OSError, ValueError):  # a closed log must not stop the work
            say(f"{self._label}: {', '.join(parts)}", self._stream or sys.stderr)


@dataclass
class Call:
    """Progress of one call that processes many items, such as an engine's `generate`."""

    total: int
    done: int = 0

    def finished(self, items: int = 1) -> None:
        self.done += items


@contextmanager
def call(total: int) -> Iterator[Call]:
    """Reports a call on `total` items to the innermost phase, if any; report finished items by `Call.finished`."""
    current = Call(total)
    phase = _open[-1] if _open else None
    if phase is not None:
        phase._call = current
    try:
        yield current
    finally:
        if phase is not None:
            phase._call = None


def say(line: str, stream: IO[str] | None = None) -> None:
    """Prints a line (by default to stdout) without breaking progress bars."""
    stream = sys.stdout if stream is None else stream
    if any(phase._bar is not None for phase in _open):
        from tqdm import tqdm

        tqdm.write(line, file=stream)
    else:
        print(line, file=stream)
    stream.flush()


@contextmanager
def lasting_stderr() -> Iterator[IO[str]]:
    """The current stderr, which stays visible while file descriptor 2 is redirected."""
    try:
        is_plain = sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):  # not a file
        is_plain = False
    if not is_plain:  # such as a notebook's, which does not use file descriptor 2
        yield sys.stderr
        return
    with os.fdopen(os.dup(2), "w") as stream:
        yield stream


def amount(number: int, unit: str) -> str:
    return f"{number:,} {unit}" + ("" if number == 1 else "s")


def clock(seconds: float) -> str:
    """Minutes and seconds as 4:07, with hours as 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
