"""A hash of JSON values."""

import hashlib
import json


def json_digest(value: object) -> str:
    """16 hexadecimal digits that depend on all of `value`, but not on the order of its keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
