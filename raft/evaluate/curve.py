"""Comparison of methods at the point of their training where they have learned equally much."""

from collections.abc import Mapping, Sequence


def at_level(points: Sequence[tuple[float, float]], level: float) -> float | None:
    """y where x first reaches `level`, by linear interpolation; None if it never does.

    points: (x, y) in the order of the training, the untrained model first. x is the score that is learned, y one that
    may be forgotten.
    """
    before = None
    for x, y in points:
        if x >= level:
            if before is None or x == before[0]:
                return y
            share = (level - before[0]) / (x - before[0])
            return before[1] + share * (y - before[1])
        before = (x, y)
    return None


def common_level(curves: Sequence[Sequence[tuple[float, float]]]) -> float:
    """The highest x that every curve reaches."""
    return min(max(x for x, _ in points) for points in curves)


def at_common_level(curves: Mapping[str, Sequence[tuple[float, float]]]) -> tuple[float, dict[str, float]]:
    """The common level, and y of each curve at that level."""
    level = common_level(list(curves.values()))
    found = {name: at_level(points, level) for name, points in curves.items()}
    return level, {name: y for name, y in found.items() if y is not None}  # every curve reaches it
