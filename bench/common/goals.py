"""Goals of the project as lines of text: what was wanted, what was found, and whether it is met."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

Group = TypeVar("Group")
Record = dict[str, Any]


def summary(groups: Mapping[Group, list[Record]], lines: Callable[[Group, list[Record]], Iterable[str]]) -> list[str]:
    """The lines about each group of records, with the group's name before each line."""
    return [f"{group}: {line}" for group, found in groups.items() for line in lines(group, found)]


def ratio(above: Record | None, below: Record | None, key: str) -> float | None:
    """A field of one record divided by that of another; None where either was not measured."""
    if above is None or below is None or above[key] is None or below[key] is None:
        return None
    return above[key] / below[key]


def goal_line(wanted: str, found: float | None, unit: str, subject: str = "") -> str:
    """`wanted` is a sign and a bound, such as "<= 1.1"."""
    line = f"goal: {subject}{wanted} {unit}: "
    if found is None:
        return line + "not measured"
    sign, bound = wanted.split()
    met = found >= float(bound) if sign == ">=" else found <= float(bound)
    return line + f"{found:.2f} {'met' if met else 'missed'}"
