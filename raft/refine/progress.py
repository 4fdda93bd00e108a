"""Where a stage is: a live bar on a terminal, one line at its end elsewhere."""

import sys
import time
from typing import Any, Self


class Progress:
    """Rows, tokens and the share of rows that are still in, of one stage."""

    def __init__(self, stage: str, total: int, *, show: bool = True):
        self._stage, self._total = stage, total
        self._show = show and total > 0
        self._start = time.monotonic()
        self._done = self._fresh = self._tokens = self._kept = 0
        self._bar: Any = None
        if self._show and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=f"refine: {stage}", unit="row", dynamic_ncols=True)

    def add(self, rows: int, *, fresh: int = 0, tokens: int = 0, kept: int = 0) -> None:
        """`rows` more are done, `fresh` of them now and not by an earlier run; `kept` of all rows so far are still in."""
        self._done += rows
        self._fresh += fresh
        self._tokens += tokens
        self._kept = kept
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(self._figures()), refresh=False)
            self._bar.initial += rows - fresh  # read from disk: no part of the speed, nor of the time left
            self._bar.update(rows)

    def _figures(self) -> list[str]:
        seconds = max(time.monotonic() - self._start, 1e-9)
        figures = [f"{self._tokens / seconds:,.0f} tokens/s"] if self._tokens else []
        return [*figures, f"kept {100 * self._kept / max(self._done, 1):.1f} %"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._show and kind is None:
            seconds = max(time.monotonic() - self._start, 1e-9)
            speed = [f"{self._fresh / seconds:,.1f} rows/s"] if self._fresh else []
            before = self._done - self._fresh
            earlier = [f"{before} of them done before"] if before else []
            line = ", ".join([f"{self._done} rows in {seconds:.1f} s", *earlier, *speed, *self._figures()])
            print(f"refine: {self._stage}: {line}", file=sys.stderr, flush=True)
