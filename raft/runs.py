"""A run is one folder. This module opens it, and writes into it so that a kill at any moment loses at most the line in flight."""

import fcntl
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self

from raft.errors import InputError, Interrupted, RunFolderError

# Made first in every run folder: says that a run made what is in it (so --overwrite may remove it) and holds the lock.
MARKER = ".raft-run"
REPORTS = ("report.html", "report.md", "report", "summary.json")
REAL = ("real.json", "base", "chosen.json", "seeds", "medquad.json")
PARTS = (
    "config.yaml",
    "demo.json",
    "seconds.json",
    "data",
    "refine",
    "train",
    "model",
    "baselines",
    "eval",
    *REAL,
    *REPORTS,
)
# What a stage writes, and what later stages made from that.
STAGES = {None: PARTS, "train": ("train", "model", "eval", *REPORTS)}


class Run:
    """The paths inside one run folder."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.refine_dir = self.path / "refine"
        self.train_dir = self.path / "train"
        self.model_dir = self.path / "model"
        self.eval_dir = self.path / "eval"
        self.config_path = self.path / "config.yaml"

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"


def check_run(path: str | Path, *, resume: bool = False, overwrite: bool = False, stage: str | None = None) -> None:
    """Refuses a folder that `open_run` would refuse; touches nothing.

    `stage` None means that the run starts here, in a folder of its own; "train" means that refine/ may be there already.
    """
    path = Path(path)
    if resume and overwrite:
        raise RunFolderError(f"{path}: expected --resume or --overwrite, found both")
    if not path.exists():
        if resume:
            raise RunFolderError(
                f"{path}: no such run folder, so there is nothing to resume; leave out --resume to start one"
            )
        return
    if not path.is_dir():
        raise RunFolderError(f"{path}: expected a run folder, found a file")
    names = {entry.name for entry in path.iterdir()}
    written = names & set(STAGES[stage])
    if MARKER not in names and overwrite and written:
        found = ", ".join(sorted(written))
        raise RunFolderError(
            f"{path}: no run made this folder, so --overwrite does not remove what is in it ({found}); choose another"
        )
    if resume or overwrite:
        return
    taken = names - {MARKER}
    if stage == "train" and "refine" in names:
        taken = names & {"train", "model"}
    elif stage == "train" and MARKER in names:
        taken = written
    if taken:
        found = ", ".join(sorted(taken)[:4]) + (", ..." if len(taken) > 4 else "")
        raise RunFolderError(
            f"{path}: the run folder exists ({found}); give --resume to go on with it or --overwrite to replace it"
        )


def open_run(path: str | Path, *, resume: bool = False, overwrite: bool = False, stage: str | None = None) -> Run:
    """Creates or reopens a run folder and locks it for this process; `RunFolderError` as in `check_run`.

    `overwrite` removes what the stage wrote and what was made from it, and leaves files alone that no run writes.
    """
    run = Run(path)
    if int(os.environ.get("RANK", "0")) > 0:
        return run  # under torchrun the first rank opens the folder for all
    check_run(path, resume=resume, overwrite=overwrite, stage=stage)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        _lock(run.path)
    except RunFolderError:
        raise
    except OSError as error:
        raise RunFolderError(f"{path}: the run folder cannot be written: {error.strerror}") from error
    if overwrite:
        for name in STAGES[stage]:
            part = run.path / name
            if part.is_dir() and not part.is_symlink():
                shutil.rmtree(part)
            else:
                part.unlink(missing_ok=True)
    return run


_locks: dict[Path, IO[str]] = {}


def _lock(folder: Path) -> None:
    """Takes the folder's lock until this process ends. A POSIX lock: children do not inherit it, a kill frees it."""
    marker = folder.resolve() / MARKER
    if marker in _locks and marker.exists():
        return
    file = open(marker, "a+")  # noqa: SIM115  # stays open: closing it gives the lock back
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise RunFolderError(
            f"{folder}: process {holder or 'unknown'} is working in this run folder; wait for it or stop it"
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    _locks[marker] = file


def write_text(path: str | Path, text: str) -> None:
    """Replaces a file as a whole: readers see the old content or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Writes indented JSON with `write_text`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """The JSON value in a file; `InputError` names the file that is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: expected JSON: {error}") from error


class JsonlAppender:
    """Appends to a JSON Lines file, one write and flush a line; a torn last line of a killed run is cut off first."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        repair_jsonl(self.path)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def append(self, value: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(value, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """All objects of a JSON Lines file that a run wrote; a last line torn by a kill is left out.

    A missing file reads as empty: nothing was written yet.
    """
    path = Path(path)
    if not path.exists():
        return []
    *lines, last = path.read_bytes().split(b"\n")
    values = [_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if _whole(last):
        values.append(json.loads(last))
    return values


def repair_jsonl(path: str | Path) -> None:
    """Cuts a torn last line off (or ends a whole one), so that appending starts on a line of its own."""
    path = Path(path)
    if not path.exists():
        return
    with open(path, "r+b") as file:
        data = file.read()
        start = data.rfind(b"\n") + 1
        if start == len(data):
            return
        if _whole(data[start:]):
            file.write(b"\n")
        else:
            file.truncate(start)


def _line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}, line {number}: expected one JSON object: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}, line {number}: expected one JSON object, found {type(value).__name__}")
    return value


def _whole(line: bytes) -> bool:
    """Whether a line without its newline is an object after all; no prefix of an object is one itself."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Within it, the first SIGINT or SIGTERM raises `Interrupted` in the main thread; a second one ends the process at once."""

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def stop(signum: int, frame: object) -> None:
        for number in old:
            signal.signal(number, signal.SIG_DFL)
        name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
        raise Interrupted(
            f"stopped by {name}; what is done is saved: demo, refine and train go on with --resume", signum
        )

    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in old:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
