"""Which rows go through the stages together."""

import math
from collections.abc import Iterator, Sequence

from raft.rows import Row

SLICE_ROWS = 4096
"""Rows with a wording to change that go through all stages before the next ones begin. Memory holds what was made of
these alone; a server idles for an answer or two at the end of each stage, and of each round of fusion."""


def has_wording(row: Row) -> bool:
    """An answer that calls tools stays as it is: there is no wording to change."""
    return not row.get("answer_turn", {}).get("tool_calls")


def slices(rows: Sequence[Row], batch_size: int, size: int = SLICE_ROWS) -> Iterator[list[Row]]:
    """Parts of `size` rows with a wording, in the order of the input; those without go with the one before them.

    `size` is rounded up to whole batches: a rewriting is embedded beside the same ones whatever the size. A fused
    candidate is not, and the last digits of its embedding may differ; a similarity has only those that do not.
    """
    size = batch_size * math.ceil(size / batch_size)
    part: list[Row] = []
    count = 0
    for row in rows:
        if count == size and has_wording(row):
            yield part
            part, count = [], 0
        part.append(row)
        count += has_wording(row)
    if part:
        yield part
