"""manifest.json of a run folder: lists what commands of the run wrote. Nothing else is removed or replaced."""

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Self

from raft.errors import RaftError, RunFolderError
from raft.runs.files import read_json, write_json

MARKER = ".raft-run"
"""The first file made in a run folder; it is locked by the command that works there."""
MANIFEST = "manifest.json"

# A run folder of a version without manifests has MARKER or, if copied without hidden files, a config.yaml with all
# _SECTIONS and one of _RECORDS. A name of _EARLIER then belongs to the run if the file that it maps to exists.
_SECTIONS = ("\nmodel:", "\ndata:", "\nseed:", "\nrun:", "\nrefine:", "\ntrain:", "\nevaluate:")
_RECORDS = ("refine/rewrite.jsonl", "train/metrics.jsonl", "demo.json")
_EARLIER = {
    "config.yaml": "config.yaml",
    "refine": "refine/rewrite.jsonl",
    "train": "train/metrics.jsonl",
    "model": "train/metrics.jsonl",
    "eval": "eval",
    "report.html": "report.html",
    "report.md": "report.md",
    "report": "report.html",
    **{f"data/{name}.jsonl": "demo.json" for name in ("train", "validation", "test")},
    **dict.fromkeys(("demo.json", "baselines", "seconds.json", "summary.json"), "demo.json"),
}
_EARLIER_REAL = ("real.json", "base", "chosen.json", "seeds", "values", "medquad.json", "seconds.json")


class Manifest:
    """written: path in the run folder -> the command that wrote it. A folder's path includes all that is in it."""

    def __init__(self, folder: Path, written: dict[str, str] | None = None):
        self.folder, self.written = folder, written or {}

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """None for a folder that no run made; `RunFolderError` if its manifest.json is not a manifest."""
        file = folder / MANIFEST
        if not file.exists():
            return cls(folder, _earlier(folder)) if _made_earlier(folder) else None
        try:
            found = read_json(file)
            written = {_inside(name): str(command) for name, command in found["written"].items()}
        except (RaftError, LookupError, TypeError, AttributeError) as error:
            raise RunFolderError(
                f'{file}: expected the manifest of a run, {{"written": {{path: command}}}}, found something else; '
                "choose another run folder, or remove that file if a run made this one"
            ) from error
        return cls(folder, written)

    def covers(self, name: str) -> bool:
        """Whether a command wrote this path or a folder above it."""
        path = PurePosixPath(name)
        return any(str(part) in self.written for part in (path, *path.parents))

    def add(self, command: str, names: Iterable[str]) -> None:
        """Adds the names that the command is about to write, and saves the manifest. Existing files that are not in the
        manifest are not added: they belong to the user."""
        for name in names:
            if not self.covers(_inside(name)) and not os.path.lexists(self.folder / name):
                self.written[name] = command
        write_json(self.folder / MANIFEST, {"written": self.written})


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) == ".":
        raise RunFolderError(f"{name}: expected the name of something inside the run folder")
    return str(path)


def _made_earlier(folder: Path) -> bool:
    if (folder / MARKER).exists():
        return True
    try:
        text = "\n" + (folder / "config.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return all(section in text for section in _SECTIONS) and any((folder / name).exists() for name in _RECORDS)


def _earlier(folder: Path) -> dict[str, str]:
    proof = dict(_EARLIER)
    if (folder / "real.json").exists():
        proof |= dict.fromkeys((*_EARLIER_REAL, "data/train.jsonl"), "real.json")
    return {
        name: "an earlier version" for name in proof if (folder / proof[name]).exists() and (folder / name).exists()
    }
