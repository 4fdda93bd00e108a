"""What a checkpoint is, wherever it lies: part of the cache keys, so that other weights at the same path are other work.

Small files count whole, large ones by their size and 16 spots spread over them: training moves every tensor.
"""

import hashlib
from pathlib import Path

_SPOTS = 16
_SPOT_BYTES = 65_536


def fingerprint(path: str | Path) -> str:
    """Hash of a folder's configuration, tokenizer and weights; a name that is no folder is its own fingerprint."""
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
    """Hash of one file."""
    digest = hashlib.blake2b(digest_size=12)
    _add(digest, file)
    return digest.hexdigest()


def _add(digest: hashlib.blake2b, file: Path) -> None:
    size = file.stat().st_size
    with open(file, "rb") as stream:
        if size <= _SPOTS * _SPOT_BYTES:
            digest.update(stream.read())
            return
        for spot in range(_SPOTS):
            stream.seek((size - _SPOT_BYTES) * spot // (_SPOTS - 1))
            digest.update(stream.read(_SPOT_BYTES))
