"""Embeddings on disk, by the hash of their text: what was embedded once is not embedded again."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raft.refine.embed import Embedder
from raft.refine.places import Places

_HASH = 16  # bytes


class StoredVectors:
    """An embedder beside a file of its vectors: a line of JSON (the model's name, d), then for each text its hash and
    its vector, d float32. Memory holds where each vector is.

    The vectors of another model are thrown away. The file can be deleted at any time between two runs.
    """

    def __init__(self, embedder: Embedder, path: Path):
        self.name = embedder.name
        self._embedder, self._path = embedder, path
        self._places = Places()  # of the vectors, by the first bytes of the hash of their texts
        self._dimensions = 0  # until a vector is known
        self._read()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[n, d] float32, a row a text. Texts without a vector are embedded in one call, in their order."""
        hashes = [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_HASH).digest() for text in texts]
        missing = {
            hashed: text for hashed, text in zip(hashes, texts, strict=True) if _short(hashed) not in self._places
        }
        if missing or not texts:
            made = np.asarray(self._embedder.encode(list(missing.values())), dtype=np.float32)
            if not texts:
                return made
            self._add(list(missing), made)
        size = 4 * self._dimensions
        with open(self._path, "rb", buffering=0) as file:
            stored = b"".join(os.pread(file.fileno(), size, self._places[_short(hashed)]) for hashed in hashes)
        return np.frombuffer(stored, dtype=np.float32).reshape(len(texts), self._dimensions).copy()

    def _read(self) -> None:
        """Finds the vectors of the file, and cuts off one that a kill has torn."""
        try:
            file = open(self._path, "r+b")  # noqa: SIM115
        except FileNotFoundError:
            return
        with file:
            try:
                line = file.readline()
                header = json.loads(line)
                if line.endswith(b"\n") and header["name"] == self.name:
                    self._dimensions = header["d"]
            except (ValueError, TypeError, KeyError):
                pass
            if not self._dimensions:
                file.truncate(0)
                return
            begin, size = file.tell(), _HASH + 4 * self._dimensions
            count = (os.fstat(file.fileno()).st_size - begin) // size
            for place in range(begin, begin + count * size, size):
                self._places.add(_short(os.pread(file.fileno(), _HASH, place)), place + _HASH)
            file.truncate(begin + count * size)

    def _add(self, hashes: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        dimensions = vectors.shape[1]
        records = b"".join(hashed + vector.tobytes() for hashed, vector in zip(hashes, vectors, strict=True))
        with open(self._path, "ab", buffering=0) as file:
            end = file.tell()
            header = b"" if end else json.dumps({"name": self.name, "d": dimensions}).encode() + b"\n"
            try:
                if file.write(header + records) < len(header) + len(records):
                    raise OSError(f"{self._path}: the disk is full")
            except OSError:
                file.truncate(end)  # for the next records to begin where a reader expects them
                raise
        place, size = end + len(header), _HASH + 4 * dimensions
        self._dimensions = dimensions
        for i, hashed in enumerate(hashes):
            self._places.add(_short(hashed), place + i * size + _HASH)


def _short(hashed: bytes) -> int:
    return int.from_bytes(hashed[:8], "little", signed=True)
