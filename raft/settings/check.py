"""Checks a setting by the annotation of its field, such as Annotated[int, Ge(1)], and refuses a wrong one in one line.

pydantic does the checking. It takes 0.2 s to import, so it is imported at the first check.
"""

import difflib
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from raft.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_WORDS: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    Sequence: "a list",
    dict: "a mapping",
    type(None): "null",
}


_NO_DEFAULT = object()


def check(hint: object, value: object, name: str) -> Any:
    """`value` as `hint` wants it: 1 as 1.0 for a float, 1e3 as 1000 for an int, nothing else is converted.

    ConfigError otherwise: the name, what was expected, what was found.
    """
    from pydantic import ValidationError

    for candidate in (value, int(value)) if isinstance(value, float) and value.is_integer() else (value,):
        try:
            return _adapter(hint).validate_python(candidate)
        except ValidationError:
            pass
    raise ConfigError(f"{name}: expected {expected(hint)}, found {value!r}")


def check_fields(settings: object, hints: Mapping[str, object], prefix: str = "") -> None:
    """Checks attributes in place, each by its annotation in `hints`; errors name them with `prefix`.

    Defaults of the class are not checked again, so that settings without a change need no pydantic.
    """
    for name, hint in hints.items():
        value = getattr(settings, name)
        if value is not getattr(type(settings), name, _NO_DEFAULT):
            setattr(settings, name, check(hint, value, prefix + name))


@cache
def field_hints(settings: type) -> Mapping[str, object]:
    """Name -> annotation, with its range, of each field of a dataclass that can be given."""
    hints = get_type_hints(settings, include_extras=True)
    return {f.name: hints[f.name] for f in fields(settings) if f.init}


def expected(hint: object) -> str:
    """What a value may be, in words: "a number from 0 to 1 or null"."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return expected(inner[0]) + _range(inner[1:])
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(expected, inner)))
    kind = origin or hint
    return _WORDS.get(kind, f"a {getattr(kind, '__name__', kind)}")


def unknown(name: str, known: Iterable[str]) -> str:
    """The refusal of an unknown setting, with the nearest known one: the same last part, or a similar name."""
    known, last = list(known), name.rpartition(".")[2]
    ends = {k.rpartition(".")[2]: k for k in reversed(known)}
    nearest = [ends[last]] if last in ends else difflib.get_close_matches(name, known, 1, 0.5)
    nearest = nearest or [ends[end] for end in difflib.get_close_matches(last, ends, 1, 0.6)]
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known[:20])}"
    return f"unknown setting {name!r}, {hint}"


@cache
def _adapter(hint: Any) -> "TypeAdapter[object]":
    from pydantic import ConfigDict, TypeAdapter

    strict = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    return TypeAdapter(hint, config=strict)


def _range(limits: tuple[object, ...]) -> str:
    match limits:
        case (Ge(low), Le(high)):
            return f" from {low} to {high}"
        case (Ge(bound) | Gt(bound) | Le(bound) | Lt(bound) as limit, *others):
            words: dict[type, str] = {Ge: "of at least", Gt: "above", Le: "at most", Lt: "below"}
            return f" {words[type(limit)]} {bound}{' and' * bool(others)}{_range(tuple(others))}"
    return ""
