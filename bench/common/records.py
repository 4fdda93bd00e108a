"""The records of bench/results/*.json: what they have in common, and how they become tables."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from bench.common import files
from bench.common.limits import Ceilings

Group = TypeVar("Group")


def origin(limit: Ceilings, command: str) -> dict[str, Any]:
    """The last fields of a record: the machine's ceilings, and what is needed to measure again."""
    return {
        "limit": {"gemm_tflops": digits(limit.flops / 1e12), "copy_gb_s": digits(limit.bandwidth / 1e9)},
        **files.origin(),
        "command": command,
    }


def digits(x: float) -> float:
    """Five significant digits: a run repeats no better."""
    return float(f"{x:.5g}")


def number(x: float | None) -> str:
    """Three significant digits or more; no decimals from 1,000 on."""
    if x is None:
        return "-"
    return f"{x:,.0f}" if x >= 1000 else f"{x:.1f}" if x >= 10 else f"{x:.3g}"


def grouped(records: Iterable[dict[str, Any]], key: Callable[[dict[str, Any]], Group]) -> dict[Group, list]:
    """The records by key, keys in the order in which they first occur."""
    found: dict[Group, list] = {}
    for record in records:
        found.setdefault(key(record), []).append(record)
    return found


def table(head: str, texts: int, rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown. `texts` columns on the left hold text, the others hold numbers."""
    rule = "|" + "---|" * texts + "---:|" * (head.count("|") - 1 - texts)
    return "\n".join([head, rule, *(f"| {' | '.join(row)} |".replace("  ", " ") for row in rows)])
