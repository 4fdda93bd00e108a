"""What a long phase says while it lasts: a bar on a terminal, elsewhere a line every half minute and one at the end.

A phase knows how much work it has; what does the work need not know the phase. An engine, or whoever else works through
many items within one call, opens a `call` and says what is finished; the innermost phase shows it:

    refine: fuse: 100 of 252 rows, 37 of 100 in this call, 1.2 rows/s, kept 84.0 %, 240 tokens/s, 2:07 left
"""

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, ClassVar, Self

EVERY_S = 30.0  # between two lines
REDRAW_S = 1.0  # of a bar whose numbers do not change: its clock goes on
LEAST_REDRAW_S = 0.1  # between two drawings, however fast the numbers change

_open: list["Progress"] = []  # the innermost last


class Progress:
    """One phase, shown from `with` on. Everything goes to stderr; only the first of several ranks says anything.

    total: of `unit`s; None where nobody can know, as while an engine starts: then it shows the time alone.
    per_call: an item of a `call` is one of these units, so that the call under way counts for rate and time left.
    final: whether the end of a known total stays to be seen: a line that sums up, or the full bar.
    stream: in place of stderr, see `lasting_stderr`.
    """

    _said: ClassVar[float] = 0.0  # when any of them printed a line last

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
        self._show = show and total != 0 and os.environ.get("RANK", "0") == "0"
        self._figures: Sequence[str] = ()
        self._call: Call | None = None
        self._start = self._drawn = time.monotonic()
        self._stream = stream
        self._bar: Any = None
        self._end = threading.Event()
        self._ticker: threading.Thread | None = None

    def add(self, items: int, *, fresh: int | None = None, figures: Sequence[str] | None = None) -> None:
        """`items` more are done, `fresh` of them now (default: all) and not by an earlier run. figures: to show besides."""
        self._done += items
        self._fresh += items if fresh is None else fresh
        if figures is not None:
            self._figures = figures
        if self._bar is not None and time.monotonic() - self._drawn >= LEAST_REDRAW_S:
            self._redraw()

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self._start, 1e-9)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.stop(whole=kind is None)

    def start(self) -> Self:
        if not self._show:
            return self
        self._start = time.monotonic()
        if not _open:
            Progress._said = self._start
        stream = self._stream or sys.stderr
        if getattr(stream, "isatty", lambda: False)():
            self._bar = self._draw(stream)
            if self._bar.disable:  # TQDM_DISABLE
                self._bar, self._show = None, False
                return self
        _open.append(self)
        self._ticker = threading.Thread(target=self._tick, name=f"progress of {self._label}", daemon=True)
        self._ticker.start()
        return self

    def stop(self, whole: bool = True) -> None:
        """whole: all of it was done, and not left because of an error. Calling it again does nothing."""
        if self not in _open:
            return
        _open.remove(self)
        self._end.set()
        if self._ticker is not None:
            self._ticker.join(timeout=1)  # it may be in the middle of a line to a terminal that has gone
        if self._bar is not None:
            self._redraw()
            self._bar.close()
        elif self._final and whole:
            self._print(self._summary())

    def _draw(self, stream: IO[str]) -> Any:
        from tqdm import tqdm

        label = self._label.rpartition(": ")[2]  # columns are dear
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
            smoothing=0,  # rate and time left by all that was made, as in the lines
        )

    def _redraw(self) -> None:
        self._drawn = time.monotonic()
        if self._total is not None:
            self._bar.n = self._done + self._from_call()
            self._bar.initial = self._bar.n - self._made()  # what is read from disk is no part of the speed
            self._bar.set_postfix_str(self._that_fit(), refresh=False)
        self._bar.refresh()

    def _tick(self) -> None:
        """Runs beside the work, which may stay within one call for longer than anybody should wait for a sign."""
        while not self._end.wait(self._pause()):
            if _open[-1:] != [self]:
                continue
            if self._bar is not None:
                self._redraw()
            elif self._pause() == 0:
                self._print(self._where())

    def _pause(self) -> float:
        """Seconds until this phase has something to say, or has to look whether it is the innermost one."""
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
            *self._figures,
            *self._left(),
        ]

    def _summary(self) -> list[str]:
        before = self._done - self._fresh
        earlier = [f"{before} of them done before"] if before else []
        return [f"{amount(self._done, self._unit)} in {self.seconds:.1f} s", *earlier, *self._rate(), *self._figures]

    def _call_so_far(self) -> list[str]:
        call = self._call
        return [] if call is None or call.total < 2 else [f"{call.done} of {call.total} in this call"]

    def _from_call(self) -> int:
        """Units that the call under way has finished."""
        return self._call.done if self._per_call and self._call is not None else 0

    def _made(self) -> int:
        return self._fresh + self._from_call()

    def _rate(self) -> list[str]:
        made = self._made()
        if not made:
            return []
        rate = made / self.seconds
        return [f"{rate:,.1f} {self._unit}s/s" if rate >= 1 else f"{1 / rate:,.1f} s/{self._unit}"]

    def _left(self) -> list[str]:
        assert self._total is not None
        made = self._made()
        ahead = self._total - self._done - self._from_call()
        return [f"{clock(ahead * self.seconds / made)} left"] if made and ahead > 0 else []

    def _that_fit(self) -> str:
        """The first of the figures, as many as leave room for a bar of ten columns."""
        meter = self._bar.format_dict
        bare = self._bar.format_meter(**{**meter, "ncols": None, "postfix": None})  # that has ten
        room = (meter["ncols"] or 80) - len(bare)
        text = ""
        for figure in self._figures:
            longer = f"{text}, {figure}" if text else figure
            if len(longer) + 2 > room:
                break
            text = longer
        return text

    def _print(self, parts: Sequence[str]) -> None:
        Progress._said = time.monotonic()
        with suppress(OSError, ValueError):  # a log that has gone is no reason to stop the work
            say(f"{self._label}: {', '.join(parts)}", self._stream or sys.stderr)


@dataclass
class Call:
    """Work on many items within one call of something, say an engine's `generate`."""

    total: int
    done: int = 0

    def finished(self, items: int = 1) -> None:
        self.done += items


@contextmanager
def call(total: int) -> Iterator[Call]:
    """Work on `total` items is under way; what its `finished` is told shows in the phase around it, if any."""
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
    """A line (to stdout, without `stream`) that leaves the bars around it whole."""
    stream = sys.stdout if stream is None else stream
    if any(phase._bar is not None for phase in _open):
        from tqdm import tqdm

        tqdm.write(line, file=stream)
    else:
        print(line, file=stream)
    stream.flush()


@contextmanager
def lasting_stderr() -> Iterator[IO[str]]:
    """stderr as it is now, for what must be seen while file descriptor 2 leads elsewhere."""
    try:
        is_plain = sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):  # no file at all
        is_plain = False
    if not is_plain:  # a notebook's, say: it does not go through that descriptor
        yield sys.stderr
        return
    with os.fdopen(os.dup(2), "w") as stream:
        yield stream


def amount(number: int, unit: str) -> str:
    return f"{number:,} {unit}" + ("" if number == 1 else "s")


def clock(seconds: float) -> str:
    """4:07, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
