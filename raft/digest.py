"""A hash of JSON values, and seeds that follow from them."""

import hashlib
import json
from collections.abc import Sequence


def json_digest(value: object) -> str:
    """16 hexadecimal digits that depend on all of `value`, but not on the order of its keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def derived_seed(parts: Sequence[object]) -> int:
    """In [0, 2**63), from all of `parts`, the same in every process."""
    return int.from_bytes(hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest(), "big") >> 1
