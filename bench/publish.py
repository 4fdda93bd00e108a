"""The way of a benchmark of engines or of steps, and what it leaves: records, tables with goals, and pictures."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.children import Run, prepare
from bench.files import write
from bench.stacked import Bar, draw
from bench.step_records import by_model
from bench.work import Work

Records = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class View:
    """How one benchmark runs, and how its records are shown."""

    table: Callable[[Records], str]
    notes: str
    summary: Callable[[Records], list[str]]  # goals and ratios
    bars: Callable[[Records], list[Bar]]  # of one model
    titles: Callable[[Records], tuple[str, str]]  # what a reader should take away, and what was measured
    unit: str  # of the bars

    def run(
        self,
        name: str,
        args: argparse.Namespace,
        argv: Sequence[str],
        measure: Callable[[Work, argparse.Namespace, Run], None],
    ) -> int:
        """The command: measures every model and publishes, or shows what was measured before; gives the exit status."""
        if args.records:
            return self.again(args.records)
        run = prepare(args, name, argv)
        for work in args.models:
            measure(work, args, run)
            self._write(run)  # what comes next may be stopped
            if run.interrupted:
                break
        return self.publish(run)

    def publish(self, run: Run) -> int:
        """Prints and writes all that was found; gives the exit status."""
        run.clean()
        print(f"\n{self.table(run.found)}\n", flush=True)
        self._write(run)
        if run.out is not None and run.found:
            print(f"records: {run.out}; tables: {run.out.with_suffix('.md').name}")
        self._show(run.found, run.out)
        return 130 if run.interrupted else int(not run.found)

    def _write(self, run: Run) -> None:
        if run.out is not None and run.found:
            write(run.out, json.dumps(run.found, indent=1) + "\n")
            remarks = "\n".join(f"- {line}" for line in (*run.lines, *self.summary(run.found)))
            parts = [run.about(), f"`{run.command}`", self.table(run.found), self.notes, remarks]
            write(run.out.with_suffix(".md"), "\n\n".join(parts) + "\n")

    def again(self, path: Path) -> int:
        """Shows the records of an earlier run."""
        found = json.loads(path.read_text())
        print(self.table(found))
        self._show(found, path)
        return 0

    def _show(self, found: list[dict[str, Any]], path: Path | None) -> None:
        print("\n".join(self.summary(found)))
        if path is None:
            return
        models = by_model(found)
        for model, records in models.items():
            target = path if len(models) == 1 else path.with_name(f"{path.stem}-{model.lower()}.json")
            print(f"picture: {draw(self.bars(records), *self.titles(records), self.unit, target)}")
