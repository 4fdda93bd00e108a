"""Reuse of the results of earlier evaluations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raft.errors import InputError
from raft.runs import read_json


def kept_result(path: Path, wanted: Mapping[str, object]) -> Any:
    """The result in `path`, an object, if it has the model, items and settings of `wanted`; else None."""
    if not path.exists():
        return None
    try:
        found = read_json(path)
    except InputError:
        return None
    same = isinstance(found, dict) and all(found.get(key) == value for key, value in wanted.items())
    return found if same else None
