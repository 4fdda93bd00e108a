"""`raft config`: every setting with its default, what it may be and what it is for, as YAML to save and change."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from functools import cache

from raft.settings.check import expected, field_hints
from raft.settings.files import to_yaml
from raft.settings.schema import SECTIONS, Config

_WIDTH = 116


def listing(training: type) -> str:
    """All sections. `training`: the dataclass of the settings below `train`.

    What it inherits is listed as comments, without documentation: "train" may hold any of it.
    """
    lines = [
        "# Every setting of raft with its default. Save this to a file, change it and give it with --config FILE;",
        "# or give single settings as key=value, with a dot between section and name: refine.tau=0.7",
    ]
    for f in fields(Config):
        if f.name in SECTIONS:
            kind = SECTIONS[f.name]
            section = [line for g in fields(kind) for line in _setting(kind, g)]
        elif f.name == "train":
            section = list(_training(training))
        else:
            lines += ["", *_setting(Config, f)]
            continue
        lines += ["", f"{f.name}:", *(f"  {line}" for line in section)]
    return "\n".join(lines) + "\n"


def _training(training: type) -> Iterator[str]:
    theirs = {f.name for f in fields(training.__bases__[0])}
    ours = training.__annotations__
    settable = [f for f in fields(training) if f.init and f.name not in _ABOVE]
    for f in sorted((f for f in settable if f.name in ours), key=lambda f: f.name in theirs):
        yield from _setting(training, f)
    yield "# Of transformers.TrainingArguments, whose documentation describes them (seed and run are set above):"
    yield from (f"# {_line(f)}" for f in settable if f.name not in ours)


# From the settings above, or not for a file.
_ABOVE = ("seed", "output_dir", "hub_token")


def _setting(settings: type, f: "Field[object]") -> Iterator[str]:
    """Docstring and range as comments, then the default."""
    said = _docstrings(settings).get(f.name, "As in transformers.TrainingArguments, with a default of its own.")
    text = f"{said} ({_accepted(field_hints(settings)[f.name])})"
    yield from textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")
    yield _line(f)


def _line(f: "Field[object]") -> str:
    """The name with the default."""
    default = f.default_factory() if f.default_factory is not MISSING else f.default
    if isinstance(default, (list, tuple)):
        return f"{f.name}: [{', '.join(default)}]"
    return to_yaml({f.name: None if default is MISSING else getattr(default, "value", default)}).rstrip("\n")


def _accepted(hint: object) -> str:
    """What a value may be, as short as in "whole number" or "chat | plain"."""
    words = expected(hint).removeprefix("a ")
    choices = words.removeprefix("one of ")
    return words if choices == words else choices.replace(", ", " | ")


@cache
def _docstrings(settings: type) -> dict[str, str]:
    """Field -> the text below it in the class."""
    body = ast.parse(textwrap.dedent(inspect.getsource(settings))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for statement, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            value = below.value if isinstance(below, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found[statement.target.id] = " ".join(value.value.split())
    return found
