"""The data folder, named by an argument or `RAFT_DATA_DIR`, and its files, with every field checked."""

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, get_origin, get_type_hints

from raft.errors import ConfigError, InputError
from raft.real import DATA_DIR
from raft.runs import read_jsonl

T = TypeVar("T")


def data_folder(path: str | Path | None = None) -> Path:
    """The folder `path`, or the one that `RAFT_DATA_DIR` names. ConfigError if there is none."""
    name = os.environ.get(DATA_DIR, "") if path is None else str(path)
    if not name:
        raise ConfigError(f"{DATA_DIR}: not set, expected the folder with the data files")
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder, expected the one with the data files; name it in {DATA_DIR}")
    return folder


def read_file(folder: Path, name: str, kind: type[T]) -> list[T]:
    """The objects of a JSON Lines file. Each must have the fields of the TypedDict `kind`, and none of them empty.

    ConfigError if the file is missing; InputError, with the row's number, for an invalid row.
    """
    path = folder / name
    if not path.is_file():
        raise ConfigError(f"{path}: no such file, expected it in the data folder ({DATA_DIR})")
    rows = read_jsonl(path)
    fields = {field: get_origin(of_field) or of_field for field, of_field in get_type_hints(kind).items()}
    for number, row in enumerate(rows, 1):
        for field, of_field in fields.items():
            value = row.get(field)
            if not isinstance(value, of_field) or value == "":
                expected = of_field.__name__
                raise InputError(f'{path}, row {number}: field "{field}": expected {expected}, found {value!r}')
    return rows


def draw(rng: random.Random, rows: Sequence[T], n: int, what: str) -> list[T]:
    """`n` of `rows` in random order. ConfigError if there are fewer."""
    if not 1 <= n <= len(rows):
        raise ConfigError(f"{what}: expected 1 to {len(rows)}, found {n}")
    return rng.sample(rows, n)
