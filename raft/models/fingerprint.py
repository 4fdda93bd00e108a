"""Hashes of checkpoints, as parts of cache keys: work for a model is done again once its weights have changed.

A file of at most 1 MiB is hashed as a whole, a larger one by its size and 16 samples of 64 KiB, evenly spread over it.
That is enough to notice a training, which changes every tensor.
"""

import hashlib
from pathlib import Path

_SAMPLES = 16
_SAMPLE_BYTES = 65_536


def fingerprint(path: str | Path) -> str:
    """24 hexadecimal digits for a folder's configuration, tokenizer and weights; a path that is no folder as it is."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return str(path)
    digest = hashlib.blake2b(digest_size=12)
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or file.suffix not in (".json", ".safetensors", ".jinja", ".model", ".txt"):
            continue
        digest.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode())
        _add(digest, file)
    return digest.hexdigest()


def file_fingerprint(file: Path) -> str:
    """24 hexadecimal digits for the content of one file."""
    digest = hashlib.blake2b(digest_size=12)
    _add(digest, file)
    return digest.hexdigest()


def _add(digest: hashlib.blake2b, file: Path) -> None:
    size = file.stat().st_size
    with open(file, "rb") as stream:
        if size <= _SAMPLES * _SAMPLE_BYTES:
            digest.update(stream.read())
            return
        for sample in range(_SAMPLES):
            stream.seek((size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_BYTES))
