"""Opens a run folder for a command: checks and locks it, and removes what --overwrite replaces.

The manifest lists what commands wrote. Nothing else in the folder is removed or replaced, and no input of the command.
All checks come before anything is removed.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

from raft.errors import RunFolderError
from raft.runs.manifest import MANIFEST, MARKER, Manifest
from raft.runs.paths import Run

REPORTS = ("report.html", "report.md", "report")
# The files and folders that each command writes.
WRITES: dict[str, tuple[str, ...]] = {
    "refine": ("config.yaml", "refine"),
    "train": ("config.yaml", "train", "model"),
    "demo": (
        "demo.json",
        "config.yaml",
        "seconds.json",
        "data/train.jsonl",
        "data/validation.jsonl",
        "data/test.jsonl",
        "refine",
        "baselines",
        "train",
        "model",
        "eval",
        "summary.json",
        *REPORTS,
    ),
    "real": (
        "real.json",
        "seconds.json",
        "data/train.jsonl",
        "base",
        "chosen.json",
        "seeds",
        "values",
        "medquad.json",
        "report.html",
        "report.md",
    ),
}
# Of what the run wrote, what --overwrite of each command removes: its own output, and what was made from it.
_AFTER_TRAIN = ("train", "model", "eval", "summary.json", *REPORTS)
_REPLACES: dict[str, tuple[str, ...]] = {
    "train": _AFTER_TRAIN,
    "refine": ("config.yaml", "refine", "demo.json", "seconds.json", "baselines", *_AFTER_TRAIN),
    "demo": (*WRITES["demo"], "data"),
    "real": (*WRITES["real"], "data", "eval"),
}
# Parts that a resumed command uses even if they are not in the manifest, such as copied ones.
_CONTINUED = ("refine", "train", "chosen.json", "values")
# Inputs that the user may have put into a folder before its first run.
_READS = {"train": {"data", "refine"}}


def check_run(
    path: str | Path,
    command: str = "refine",
    *,
    resume: bool = False,
    overwrite: bool = False,
    inputs: Mapping[str, str | Path] | None = None,
) -> None:
    """`RunFolderError` for a folder that `open_run` would refuse. inputs: setting -> path that the command reads."""
    _plan(Path(path), command, resume, overwrite, inputs or {})


def open_run(
    path: str | Path,
    command: str = "refine",
    *,
    resume: bool = False,
    overwrite: bool = False,
    inputs: Mapping[str, str | Path] | None = None,
) -> Run:
    """Creates or reopens a run folder and locks it for this process. `RunFolderError` if it cannot be used.

    overwrite: remove what this command and those that use its output wrote, according to the manifest.
    """
    run = Run(path)
    if int(os.environ.get("RANK", "0")) > 0:
        return run  # under torchrun, rank 0 opens the folder for all
    manifest, replaced = _plan(run.path, command, resume, overwrite, inputs or {})
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        _lock(run.path)
        _clear_up(manifest, alone=True)
        for name in replaced:
            _remove(run.path, name)
            del manifest.written[name]
        manifest.add(command, WRITES[command])
    except RunFolderError:
        raise
    except OSError as error:
        raise RunFolderError(f"{path}: the run folder cannot be written: {error.strerror}") from error
    return run


def add_to_run(path: str | Path, command: str, names: Iterable[str], inputs: Mapping[str, str | Path]) -> None:
    """Adds to the manifest files that a command is about to write or replace. `RunFolderError` if one of them exists
    but no command of the run wrote it, or if it is an input."""
    path, names = Path(path), tuple(names)
    _check_place(path)
    manifest = Manifest.read(path) or Manifest(path)
    _check_own(manifest, command, names)
    _check_inputs(path, command, names, inputs)
    try:
        _clear_up(manifest, alone=False)
        manifest.add(command, names)
    except RunFolderError:
        raise
    except OSError as error:
        raise RunFolderError(f"{path}: the run folder cannot be written: {error.strerror}") from error


def _plan(
    path: Path, command: str, resume: bool, overwrite: bool, inputs: Mapping[str, str | Path]
) -> tuple[Manifest, list[str]]:
    """The folder's manifest, and the names in it that `overwrite` removes."""
    if resume and overwrite:
        raise RunFolderError(f"{path}: expected --resume or --overwrite, found both")
    _check_place(path)
    if not path.exists():
        if resume:
            raise RunFolderError(
                f"{path}: no such run folder, so there is nothing to resume; leave out --resume to start one"
            )
        return Manifest(path), []
    manifest = Manifest.read(path)
    if manifest is None:
        _check_unmade(path, command, resume)
        manifest = Manifest(path)
    _check_own(manifest, command, [name for name in WRITES[command] if not (resume and name in _CONTINUED)])
    # config.yaml does not block training: refinement writes it too.
    blocking = WRITES[command] if command != "train" else ("train", "model")
    taken = [name for name in blocking if os.path.lexists(path / name)]
    if taken and not resume and not overwrite:
        found = ", ".join(taken[:4]) + (", ..." if len(taken) > 4 else "")
        raise RunFolderError(
            f"{path}: the run folder exists ({found}); give --resume to go on with it or --overwrite to replace it"
        )
    replaced = [name for name in manifest.written if overwrite and name.split("/")[0] in _REPLACES[command]]
    # A config.yaml given with --config may be replaced: it has been read by now.
    written = [name for name in WRITES[command] if name != "config.yaml"]
    _check_inputs(path, command, [*replaced, *written], inputs)
    return manifest, replaced


def _check_place(path: Path) -> None:
    if path.is_file():
        raise RunFolderError(f"{path}: expected a run folder, found a file")
    place = path.resolve()
    home = Path(os.path.expanduser("~")).resolve()
    for folder, name in ((Path(place.anchor), "the root folder"), (home, "the home folder")):
        if place == folder:
            raise RunFolderError(f"{path}: expected a folder for the run alone, found {name}; choose another")


def _check_unmade(path: Path, command: str, resume: bool) -> None:
    names = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}
    continues = resume and any(os.path.lexists(path / name) for name in WRITES[command] if name in _CONTINUED)
    if continues or names <= _READS.get(command, {"data"}):
        return
    found = ", ".join(sorted(names)[:4]) + (", ..." if len(names) > 4 else "")
    raise RunFolderError(
        f"{path}: no run made this folder ({found}); expected a new or empty one, or one with your data/ alone"
    )


def _check_own(manifest: Manifest, command: str, names: Iterable[str]) -> None:
    for name in names:
        if os.path.lexists(manifest.folder / name) and not manifest.covers(name):
            raise RunFolderError(
                f"{manifest.folder / name}: no command of this run wrote it, so raft {command} does not replace it; "
                "move it away, or choose another run folder"
            )


def _check_inputs(path: Path, command: str, names: Iterable[str], inputs: Mapping[str, str | Path]) -> None:
    for setting, value in inputs.items():
        # The path as given, and with links resolved.
        given = Path(value).expanduser()
        files = {Path(os.path.abspath(given)), given.resolve()}
        for name in names:
            part = path / name
            going = {Path(os.path.abspath(part)), part.resolve()}
            if any(folder in going for file in files for folder in (file, *file.parents)):
                raise RunFolderError(
                    f"{setting}: {value} is an input of raft {command}, which would replace {part}; move it out of the "
                    "run folder, or choose another run folder"
                )


def _remove(folder: Path, name: str) -> None:
    part = folder / name
    if folder.resolve() not in (part.parent.resolve(), *part.parent.resolve().parents):
        return  # a link leads out of the run folder
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part)
    else:
        part.unlink(missing_ok=True)
    if part.parent != folder and part.parent.is_dir() and not any(part.parent.iterdir()):
        part.parent.rmdir()


_TEMPORARY = re.compile(r"\..+\.(\d{1,9})\.tmp")
_PARTIAL = re.compile(r"\..+\.partial")


def _clear_up(manifest: Manifest, alone: bool) -> None:
    """Removes unfinished files of killed commands. alone: unfinished models too, since this process has the lock."""
    for path in list(_hidden(manifest)):
        temporary = _TEMPORARY.fullmatch(path.name)
        if temporary and path.is_file() and not _runs(int(temporary[1])):
            path.unlink(missing_ok=True)
        elif alone and _PARTIAL.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def _hidden(manifest: Manifest) -> Iterator[Path]:
    """Hidden files and folders next to and below what the run wrote, except those in nested run folders."""
    for name in (MANIFEST, *manifest.written):
        path = manifest.folder / name
        yield from path.parent.glob(f".{path.name}.*")
        for folder, folders, files in os.walk(path):
            if MARKER in files:
                folders.clear()
                continue
            yield from (Path(folder, hidden) for hidden in (*folders, *files) if hidden.startswith("."))


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


_locks: dict[Path, IO[str]] = {}


def _lock(folder: Path) -> None:
    """Locks the folder until this process ends. A POSIX lock: children do not inherit it, and a kill releases it."""
    marker = folder.resolve() / MARKER
    if marker in _locks and marker.exists():
        return
    file = open(marker, "a+")  # noqa: SIM115  # stays open: closing it releases the lock
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
