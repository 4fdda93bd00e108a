"""Raw rows out of files: JSON Lines, a JSON array, Parquet, CSV, and the folders that the library `datasets` saves.

Each reader gives the rows one by one, each with its place in the file for error messages. `raft.rows` checks them.
"""

import csv
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from raft.errors import InputError
from raft.row_forms import FORM_FIELDS, SHAPES
from raft.row_values import from_json, shorten, show

FORMATS = "a .jsonl, .json, .parquet, .csv or .tsv file, or a folder that datasets.save_to_disk wrote"
_BOM = b"\xef\xbb\xbf"
_LARGEST_CELL = 2**31 - 1  # characters; the csv module's own limit is 131072, less than a long chat
# Cells of CSV that are JSON texts: how such a cell begins, and what it holds. A prompt or completion may also be a text
# that begins with a bracket, so that it counts as messages only if a role follows.
_JSON_CELLS = {
    "messages": (re.compile(r"\s*\["), "a list of messages"),
    "conversations": (re.compile(r"\s*\["), "a list of turns"),
    **dict.fromkeys(
        ("prompt", "completion"),
        (re.compile(r"\s*\[\s*\{.*['\"]role['\"]\s*:", re.DOTALL), "a text or a list of messages"),
    ),
    **dict.fromkeys(("answer_turn", "check"), (re.compile(r"\s*\{"), "an object")),
}


def rows_of(path: Path) -> Iterator[tuple[str, object]]:
    """(place, row) for each row of a file or folder. `InputError` if it is none of FORMATS or cannot be read."""
    if path.is_dir():
        return _saved_dataset(path)
    if not path.exists():
        raise InputError(f"{path}: no such file, expected {FORMATS}")
    if path.suffix in (".jsonl", ".json"):
        return _json_lines(path)
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.suffix in (".csv", ".tsv"):
        return _csv(path)
    raise InputError(f"{path}: unknown extension {path.suffix!r}, expected {FORMATS}")


def _json_lines(path: Path) -> Iterator[tuple[str, object]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    data = data.removeprefix(_BOM)
    if path.suffix == ".json" and data.lstrip().startswith(b"["):
        yield from _json_array(path, data)
        return
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        text = _decoded(line, path, number)
        try:
            yield f"line {number}", json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise InputError(
                f"{path}, line {number}: expected one JSON object, found {show(text.strip())} ({reason})"
            ) from error


def _json_array(path: Path, data: bytes) -> Iterator[tuple[str, object]]:
    try:
        rows = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a JSON array of objects: {error}") from error
    for number, row in enumerate(rows):
        yield f"row {number}", row


def _parquet(path: Path) -> Iterator[tuple[str, object]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{path}: reading Parquet needs the package pyarrow: pip install pyarrow") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_columns(file.schema_arrow.names, f"{path}: expected the columns")
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield f"row {number}", row
                    number += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: not a readable Parquet file: {shorten(str(error))}") from error


def _csv(path: Path) -> Iterator[tuple[str, object]]:
    limit = csv.field_size_limit(_LARGEST_CELL)  # of the whole process
    try:
        records = _records(path)
        first = next(records, None)
        if first is None:
            raise InputError(f"{path}: is empty, expected a header line with the columns {SHAPES}")
        number, header = first
        names = [name.strip() for name in header]
        by = "tabs" if path.suffix == ".tsv" else "commas"
        _check_columns(names, f"{path}, line {number}: expected a header line, separated by {by}, with the columns")
        for name in names:
            if name and names.count(name) > 1:
                raise InputError(f"{path}, line {number}: expected one column of a name, found {show(name)} twice")
        for number, cells in records:
            where = f"{path}, line {number}"
            if len(cells) != len(names):
                raise InputError(
                    f"{where}: expected {len(names)} cells, as in the header, found {len(cells)}: "
                    f"{shorten(', '.join(map(show, cells)))}"
                )
            if not any(cells):  # spreadsheets leave such lines at the end
                continue
            # A column without a name has nothing to be called by; pandas writes one with the numbers of the rows.
            named = [(name, cell) for name, cell in zip(names, cells, strict=True) if name and cell]
            yield f"line {number}", {name: _field(name, cell, where) for name, cell in named}
    finally:
        csv.field_size_limit(limit)


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The line where a record of CSV begins, and its cells."""
    # strict: else a quotation mark that is never closed would swallow the rows that follow it.
    reader = csv.reader(_lines(path), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"{path}, line {start}: expected a row of CSV, with quotation marks closed, and doubled inside of "
                f"quoted cells ({error})"
            ) from error
        if cells is None:
            return
        if cells:  # none: a blank line
            yield start, cells


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield _decoded(line.removeprefix(_BOM) if number == 1 else line, path, number)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _field(name: str, cell: str, where: str) -> object:
    """What a cell holds: its text, or a list or object if the text is the JSON of one."""
    if name == "kept":
        if cell.lower() not in ("true", "false"):
            raise InputError(f'{where}: field "kept": expected true or false, found {show(cell)}')
        return cell.lower() == "true"  # Python writes True
    begins, expected = _JSON_CELLS.get(name, (None, ""))
    return from_json(cell, expected, where, name) if begins and begins.match(cell) else cell


def _saved_dataset(path: Path) -> Iterator[tuple[str, object]]:
    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise InputError(f"{path}: is a directory without the files of a saved dataset, expected {FORMATS}")
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{path}: reading this folder needs the package datasets: pip install datasets") from error
    try:
        loaded: Any = datasets.load_from_disk(str(path))
    except Exception as error:
        raise InputError(f"{path}: not a readable folder of datasets: {shorten(str(error), 200)}") from error
    split = ""
    if isinstance(loaded, datasets.DatasetDict):
        names = list(loaded)
        if "train" not in names and len(names) != 1:
            found = shorten(", ".join(names)) or "none"
            raise InputError(
                f"{path}: expected a split named train or one split alone, found {found}; give the folder of one "
                f"split, {path / 'NAME'}"
            )
        name = "train" if "train" in names else names[0]
        loaded, split = loaded[name], f"split {name}, "
    _check_columns(loaded.column_names, f"{path}: {split}expected the columns")
    number = 0
    try:
        # Without the format that was saved with it, such as tensors. Rows are read from the disk as they are asked for.
        for row in loaded.with_format(None):
            yield f"{split}row {number}", row
            number += 1
    except Exception as error:  # a column of images or sounds may need a package that is not there
        raise InputError(f"{path}, {split}row {number}: cannot be read: {shorten(str(error), 200)}") from error


def _check_columns(columns: Collection[str], expected: str) -> None:
    if not {*columns} & {"messages", "question", "prompt", *FORM_FIELDS}:
        found = ", ".join(sorted(columns)) or "none"
        raise InputError(f"{expected} {SHAPES}, found {shorten(found)}")


def _decoded(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}, line {number}: not UTF-8 text (byte {error.start} is {line[error.start]:#x})"
        ) from error
