"""One run of a benchmark: its circumstances, what it has found, and what it left out."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.common import files
from bench.common.limits import Ceilings


@dataclass(kw_only=True)
class BenchRun:
    device: str
    device_name: str
    state: str  # of the machine before the run
    limit: Ceilings
    command: str
    out: Path | None  # the records; None: they are only printed
    found: list[dict[str, Any]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)  # what was left out, and why
    interrupted: bool = False

    def say(self, line: str) -> None:
        """Prints a line and keeps it for the page beside the records."""
        if line not in self.lines:
            self.lines.append(line)
        print(line, flush=True)

    def leave_out(self, name: str, why: object) -> None:
        self.say(f"{name}: left out, {why}")

    def interrupt(self) -> None:
        self.interrupted = True
        self.say("interrupted: what was measured before is kept")

    def about(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in files.versions().items())
        return f"{self.device_name}: {self.state}; {self.limit}; {versions}; commit {files.commit()}"
