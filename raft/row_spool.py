"""Rows that need not be in memory."""

import os
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import overload

from raft.rows import Row


class SpooledRows(Sequence[Row]):
    """Rows in a temporary file, read anew each time they are asked for: memory holds 8 bytes a row.

    A changed row is another object: the file is not changed. It goes with the process, however that ends.
    """

    def __init__(self, rows: Iterable[Row]):
        self._file = tempfile.TemporaryFile(prefix="raft-rows-")  # noqa: SIM115
        self._begins = array("q", [0])
        for row in rows:
            self._begins.append(self._begins[-1] + self._file.write(pickle.dumps(row, pickle.HIGHEST_PROTOCOL)))
        self._file.flush()

    def __len__(self) -> int:
        return len(self._begins) - 1

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        if isinstance(place, slice):
            return [self._read(i) for i in range(*place.indices(len(self)))]
        return self._read(range(len(self))[place])

    def _read(self, place: int) -> Row:
        begin, end = self._begins[place : place + 2]
        row: Row = pickle.loads(os.pread(self._file.fileno(), end - begin, begin))
        return row


class RowsById(Mapping[str, Row]):
    """Rows of a sequence by their id, without holding them."""

    def __init__(self, rows: Sequence[Row], places: Mapping[str, int]):
        """places: id -> place in `rows`, of those that are in the mapping."""
        self._rows, self._places = rows, places

    def __getitem__(self, row_id: str) -> Row:
        return self._rows[self._places[row_id]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
