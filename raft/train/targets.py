"""Describes which answers are trained on, for the log."""

from collections.abc import Sequence

from raft.rows import Row
from raft.train.config import RAFTConfig


def targets(rows: Sequence[Row], args: RAFTConfig) -> str:
    """Names the trained answers, and counts the rows that have them and those that use the reference instead."""
    name = args.answer_target
    if name == "raw":
        return "raw answers"
    field = "fused_answer" if name == "fused" else "rewritten"
    kept = sum(bool(row.get("kept", True) and row.get(field)) for row in rows)
    found = f"{kept} of {len(rows)} rows kept a {name} one, {len(rows) - kept} fall back to the reference"
    return f"{name if kept else 'reference'} answers: {found}"
