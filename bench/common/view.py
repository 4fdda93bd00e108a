"""How the records of a benchmark are shown: tables, goals and pictures, printed and written beside the records."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common.files import write_records
from bench.common.run import BenchRun

Records = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class View:
    table: Callable[[Records], str]
    notes: str  # below the table
    summary: Callable[[Records], list[str]]  # goals and ratios
    draw: Callable[[Records, Path], Iterable[str]]  # writes pictures beside the path of the records, and names them

    def write(self, run: BenchRun) -> None:
        """Writes the records of a run and their page; often, since what comes next may be stopped."""
        if run.out is not None:
            remarks = "\n".join(f"- {line}" for line in (*run.lines, *self.summary(run.found)))
            page = [run.about(), f"`{run.command}`", self.table(run.found), self.notes, remarks]
            write_records(run.out, run.found, *page)

    def show_file(self, path: Path, plain: bool = False) -> int:
        """Shows the records of an earlier run; gives the exit status. plain: without a picture."""
        found = json.loads(path.read_text())
        print(self.table(found))
        self.show(found, None if plain else path)
        return 0

    def show(self, found: Records, path: Path | None) -> None:
        """Prints goals and ratios, and draws pictures where there is a path for them."""
        print("\n".join(self.summary(found)))
        if path is None or not found:
            return
        try:
            for picture in self.draw(found, path):
                print(f"picture: {picture}")
        except ImportError as error:
            print(f"picture: left out, {error}")
