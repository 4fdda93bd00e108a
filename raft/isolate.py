"""Processes items in batches so that an item that fails does not affect the others."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from raft.errors import ConfigError, EngineError, ModelError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Errors of the run, not of an item: every other item would fail too.
RUN_ERRORS = (EngineError, ModelError, ConfigError)


def batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Consecutive batches of `size` items; the last may have fewer."""
    return (items[start : start + size] for start in range(0, len(items), size))


def isolate(call: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]) -> list[Result | Exception]:
    """call(items), one result per item. If it raises, each half is tried alone, down to single items; the result of an
    item that still fails is its exception. RUN_ERRORS are raised."""
    if not items:
        return []
    try:
        results = list(call(items))
        if len(results) != len(items):
            raise RuntimeError(f"expected {len(items)} results, got {len(results)}")
        return [*results]
    except RUN_ERRORS:
        raise
    except Exception as error:  # noqa: BLE001  # engines, embedding models and judges may raise anything
        if len(items) == 1:
            return [error]
    half = len(items) // 2
    return isolate(call, items[:half]) + isolate(call, items[half:])


def reason(error: Exception) -> str:
    """Type and message of the error, in one line of at most 300 characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else text[:297] + "..."
