"""Reads and writes the files of a run. If the process is killed, at most the line being written is lost."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self, TextIO

from raft.errors import InputError

_BLOCK = 65_536  # bytes


@contextmanager
def replacing(path: str | Path) -> Iterator[TextIO]:
    """A file to write to, which takes the place of `path` when the context is left without an error: readers see the
    old content or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Replaces a file atomically."""
    with replacing(path) as file:
        file.write(text)


def write_json(path: str | Path, value: object) -> None:
    """Writes indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """The JSON value in a file; `InputError` names a file that is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: expected JSON: {error}") from error


class JsonlAppender:
    """Appends lines to a JSON Lines file and flushes each. First removes a partial last line left by a killed run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        repair_jsonl(self.path)
        self._file = open(self.path, "ab")  # noqa: SIM115

    def append(self, value: Mapping[str, object]) -> int:
        """Returns the place in the file, in bytes, at which the line begins."""
        place = self._file.tell()
        self._file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        return place

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_jsonl(path: str | Path) -> list[Any]:
    """All objects of a JSON Lines file, without a partial last line left by a killed run. [] for a missing file.

    They are dicts; which fields they have, their readers know.
    """
    return list(iter_jsonl(path))


def iter_jsonl(path: str | Path) -> Iterator[Any]:
    """The objects of `read_jsonl` one by one, for files that need not be in memory as a whole."""
    path = Path(path)
    if not path.exists():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n") and line.strip():
                yield parse_line(path, number, line)
            elif _whole(line):
                yield json.loads(line)


def repair_jsonl(path: str | Path) -> None:
    """Removes a partial last line, or ends a complete one with a newline, so that lines can be appended."""
    path = Path(path)
    if not path.exists():
        return
    with open(path, "r+b") as file:
        start = _start_of_last_line(file)
        file.seek(start)
        rest = file.read()
        if not rest:
            return
        if _whole(rest):
            file.write(b"\n")
        else:
            file.truncate(start)


def parse_line(path: Path, number: int, line: bytes) -> dict[str, object]:
    """The object of one line of a file; `InputError` where it is none. number: of the line, from 1."""
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}, line {number}: expected one JSON object: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}, line {number}: expected one JSON object, found {type(value).__name__}")
    return value


def _start_of_last_line(file: BinaryIO) -> int:
    """Where the bytes after the last newline begin, found from the end."""
    end = file.seek(0, os.SEEK_END)
    while end:
        begin = max(end - _BLOCK, 0)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def _whole(line: bytes) -> bool:
    """Whether a last line without a newline is complete. No proper prefix of a JSON object is a JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
