"""The data folder, named by an argument or `RAFT_DATA_DIR`, and its files, with every field checked."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raft.errors import ConfigError, InputError
from raft.real import DATA_DIR
from raft.runs import read_jsonl


def data_folder(path: str | Path | None = None) -> Path:
    """The folder `path`, or the one that `RAFT_DATA_DIR` names. ConfigError if there is none."""
    name = os.environ.get(DATA_DIR, "") if path is None else str(path)
    if not name:
        raise ConfigError(f"{DATA_DIR}: not set, expected the folder with the data files")
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder, expected the one with the data files; name it in {DATA_DIR}")
    return folder


def read_file(folder: Path, name: str, fields: Mapping[str, type]) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file. Each must have `fields`, of the given types and not empty.

    ConfigError if the file is missing; InputError, with the row's number, for an invalid row.
    """
    path = folder / name
    if not path.is_file():
        raise ConfigError(f"{path}: no such file, expected it in the data folder ({DATA_DIR})")
    rows = read_jsonl(path)
    for number, row in enumerate(rows, 1):
        for field, kind in fields.items():
            value = row.get(field)
            if not isinstance(value, kind) or value == "":
                raise InputError(f'{path}, row {number}: field "{field}": expected {kind.__name__}, found {value!r}')
    return rows


def draw(rng: Any, rows: list[Any], n: int, what: str) -> list[Any]:
    """`n` of `rows` in random order. ConfigError if there are fewer."""
    if not 1 <= n <= len(rows):
        raise ConfigError(f"{what}: expected 1 to {len(rows)}, found {n}")
    return rng.sample(rows, n)
