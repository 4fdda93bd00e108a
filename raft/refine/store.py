"""What a stage has done, on disk: append-only JSON Lines, each keyed by row id and a hash of everything that made it.

A restart reads the file and does only what is missing. Nothing is ever rewritten: with another model, prompt version,
parameter or text the hash is another one, the row is done again, and its old line stays without being read.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Generic, Self, TypeVar

from raft import prompts
from raft.refine.lines import FailedLine, StoredLine
from raft.refine.places import Places
from raft.runs import JsonlAppender
from raft.runs.files import parse_line, replacing


def row_key(model: str, parameters: Mapping[str, object], messages: Sequence[object]) -> str:
    """Hash (32 hexadecimal digits) of model, prompt version, parameters and messages."""
    made_of = [model, prompts.PROMPT_VERSION, parameters, messages]
    text = json.dumps(made_of, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


Line = TypeVar("Line", bound=StoredLine)


class Store(Generic[Line]):
    """The lines of one stage. Of two lines with the same id and key the newest counts.

    Lines stay on disk, and memory holds where each begins.
    """

    def __init__(self, path: Path):
        self._file = JsonlAppender(path)  # cuts off a line that a kill has torn
        self._reader = open(path, "rb")  # noqa: SIM115
        self._places = Places()  # by the hash of id and key
        place = 0
        for number, data in enumerate(self._reader, 1):
            if data.strip():
                line = parse_line(path, number, data)
                self._places.add(hash((line.get("id"), line.get("key"))), place)
            place += len(data)

    def get(self, row_id: str, key: str) -> Line | None:
        place = self._places.get(hash((row_id, key)))
        if place is None:
            return None
        self._reader.seek(place)
        line: Line = json.loads(self._reader.readline())
        # Another line may have the same hash, once in 10 to the 19th power.
        return line if (line["id"], line["key"]) == (row_id, key) else None

    def add(self, line: Line) -> None:
        """Appends one line, on disk before this returns."""
        self._places.add(hash((line["id"], line["key"])), self._file.append(line))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self._reader.close()


class Failures:
    """failed.jsonl: rows that keep their reference answer, with stage and reason.

    Grows while the stages run, so that it can be watched; `finish` leaves exactly the rows that failed in the end.
    """

    def __init__(self, path: Path):
        self._path = path
        self._file = JsonlAppender(path)
        self._failed: dict[str, FailedLine] = {}

    def add(self, row_id: str, stage: str, reason: str) -> None:
        line = FailedLine(id=row_id, stage=stage, reason=reason)
        self._failed[row_id] = line
        self._file.append(line)

    def __contains__(self, row_id: str) -> bool:
        return row_id in self._failed

    def __len__(self) -> int:
        return len(self._failed)

    def first(self) -> FailedLine:
        return next(iter(self._failed.values()))

    def finish(self, order: Iterable[str]) -> None:
        """Replaces what earlier, interrupted runs left, in the order of the input."""
        write_lines(self._path, (self._failed[row_id] for row_id in order if row_id in self._failed))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Writes JSON Lines, each row as it comes; readers see the old file until the new one is whole."""
    with replacing(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
