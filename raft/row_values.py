"""Values of rows: as error messages show them, and those that are given as JSON texts."""

import json

from raft.errors import InputError


def from_json(value: object, expected: str, where: str, field: str) -> object:
    """`value`, parsed if it is a JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f'{where}: field "{field}": expected {expected} or its JSON text, found {show(value)} ({error})'
        ) from error


def show(value: object) -> str:
    """A value for an error message: as JSON, with other characters than ASCII escaped, at most 80 characters."""
    try:
        shown = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        shown = ascii(value)
    return shorten(shown)


def shorten(text: str, limit: int = 80) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
