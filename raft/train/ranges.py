"""Ranges of settings. What lies outside is a one-line `ConfigError`: the setting, what was expected, what was found."""

import math

from raft.errors import ConfigError


def one_of(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}: expected one of {', '.join(map(str, choices))}, found {value!r}")


def whole(name: str, value: object, low: int, high: float = math.inf) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        within = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
        raise ConfigError(f"{name}: expected a whole number {within}, found {value!r}")


def number(
    name: str, value: object, *, low: float, high: float = math.inf, open_low: bool = False, open_high: bool = False
) -> None:
    finite = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    within = finite and low <= value <= high  # type: ignore[operator]
    if not within or (open_low and value == low) or (open_high and value == high):
        above = f"above {low:g}" if open_low else f"of at least {low:g}"
        below = "" if high == math.inf else f" and below {high:g}" if open_high else f" and at most {high:g}"
        raise ConfigError(f"{name}: expected a number {above}{below}, found {value!r}")
