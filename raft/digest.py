"""One hash for whatever JSON can say."""

import hashlib
import json
from typing import Any


def json_digest(value: Any) -> str:
    """16 hexadecimal digits that change with any value in `value`, and not with the order of its keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
