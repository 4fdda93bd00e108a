"""Which of a row's answers is trained on, as far as rows have it."""

from collections.abc import Mapping, Sequence
from typing import Any

from raft.train.config import RAFTConfig


def targets(rows: Sequence[Mapping[str, Any]], args: RAFTConfig) -> str:
    """The answers that are trained on, with the number of rows that have them, and of those that have the reference only."""
    name = args.answer_target
    if name == "raw":
        return "raw answers"
    field = "fused_answer" if name == "fused" else "rewritten"
    kept = sum(bool(row.get("kept", True) and row.get(field)) for row in rows)
    found = f"{kept} of {len(rows)} rows kept a {name} one, {len(rows) - kept} fall back to the reference"
    return f"{name if kept else 'reference'} answers: {found}"
