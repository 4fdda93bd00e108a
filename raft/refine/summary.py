"""What a refinement came to, as a small table in plain text."""

from collections import Counter
from collections.abc import Mapping, Sequence

from raft.refine.progress import StageNumbers

COMMONEST = 3
"""So many reasons are named."""


def summary_text(
    stages: Sequence[StageNumbers], reasons: Mapping[str, Mapping[str, int]], *, made_here: bool = True
) -> str:
    """A line a stage, and one with the commonest reasons why texts were not used. reasons: of the diagnostics.

    made_here: whether this process has done the work. Else it knows neither who made what nor how long that took.
    """
    columns = [
        ["stage", *(one.stage for one in stages)],
        ["rows", *(f"{one.rows:,}" for one in stages)],
        ["new", *(f"{one.new:,}" for one in stages)],
        ["passed", *(f"{one.passed:,}" for one in stages)],
        ["failed", *(f"{one.failed:,}" for one in stages)],
        ["tokens", *(f"{one.tokens:,}" if one.tokens else "-" for one in stages)],
        ["tokens/s", *(f"{one.tokens / one.seconds:,.0f}" if one.tokens else "-" for one in stages)],
        ["seconds", *(f"{one.seconds:.1f}" for one in stages)],
    ]
    if not made_here:
        columns = [column for column in columns if column[0] in ("stage", "rows", "passed", "failed")]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))])
        for first, *rest in zip(*columns, strict=True)
    ]
    return "\n".join([*lines, *_not_used(reasons)])


def _not_used(reasons: Mapping[str, Mapping[str, int]]) -> list[str]:
    counts: Counter[str] = Counter()
    for of_stage in reasons.values():
        counts.update(of_stage)
    texts, rejected = counts.pop("texts"), counts.pop("rejected")
    named = [f"{name} {count:,}" for name, count in counts.most_common(COMMONEST) if count]
    return [f"not used: {rejected:,} of {texts:,} texts; most often: {', '.join(named)}"] if named else []
