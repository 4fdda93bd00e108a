"""Where the entries of a large file begin, without the entries in memory."""

import numpy as np
from numpy.typing import NDArray


class Places:
    """Hash of an entry (64 bits, signed) -> where it begins, in bytes: under 30 bytes of memory an entry.

    Sorted arrays, beside a dict of the entries that were added last. They are sorted in when they are `recent` at
    least, and an eighth of all, so that each entry is moved a few times alone.
    """

    def __init__(self, recent: int = 16_384) -> None:
        self._least = recent
        self._hashes: NDArray[np.int64] = np.empty(0, np.int64)
        self._begins: NDArray[np.int64] = np.empty(0, np.int64)
        self._recent: dict[int, int] = {}

    def get(self, hashed: int) -> int | None:
        """None for an entry that was never added."""
        if hashed in self._recent:
            return self._recent[hashed]
        i = int(np.searchsorted(self._hashes, hashed))
        return int(self._begins[i]) if i < len(self._hashes) and self._hashes[i] == hashed else None

    def __getitem__(self, hashed: int) -> int:
        begin = self.get(hashed)
        if begin is None:
            raise KeyError(hashed)
        return begin

    def add(self, hashed: int, begin: int) -> None:
        """Of two entries with one hash the newer counts."""
        self._recent[hashed] = begin
        if len(self._recent) >= max(self._least, len(self._hashes) // 8):
            self._sort_in()

    def __contains__(self, hashed: int) -> bool:
        return self.get(hashed) is not None

    def _sort_in(self) -> None:
        recent = np.fromiter(self._recent.items(), np.dtype((np.int64, 2)), len(self._recent))
        hashes = np.concatenate([self._hashes, recent[:, 0]])
        order = np.argsort(hashes, kind="stable")  # of equal ones the newest is last
        newest = np.append(np.diff(hashes[order]) != 0, True)
        order = order[newest]
        self._hashes, self._begins = hashes[order], np.concatenate([self._begins, recent[:, 1]])[order]
        self._recent = {}
