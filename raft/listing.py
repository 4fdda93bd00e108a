"""`raft config`: every setting with its default, what it may be and what it is for, as YAML that can be saved and changed."""

import ast
import inspect
import textwrap
import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from raft.config import SECTIONS, Between, Config

_WIDTH = 116


def listing() -> str:
    """All sections. Settings that transformers.TrainingArguments brings are comments: "train" may hold any of them.

    Imports torch, for the fields of RAFTConfig.
    """
    lines = [
        "# Every setting of raft with its default. Saved to a file, changed, and given with --config FILE; or one by one,",
        "# as key=value with a dot between section and name: refine.tau=0.7",
    ]
    for f in fields(Config):
        if f.name in SECTIONS:
            lines += ["", f"{f.name}:", *_indented(_section(SECTIONS[f.name]))]
        elif f.name == "train":
            lines += ["", "train:", *_indented(_train())]
        else:
            lines += ["", *_setting(Config, f)]
    return "\n".join(lines) + "\n"


def _section(settings: type) -> Iterator[str]:
    for f in fields(settings):
        yield from _setting(settings, f)


def _train() -> Iterator[str]:
    from transformers import TrainingArguments

    from raft.train.config import RAFTConfig

    theirs = {f.name: f for f in fields(TrainingArguments)}
    ours = [f for f in fields(RAFTConfig) if f.init and f.name in RAFTConfig.__annotations__]
    for f in sorted(ours, key=lambda f: f.name in theirs):
        yield from _setting(RAFTConfig, f)
    yield "# Of transformers.TrainingArguments, whose documentation describes them (seed and run are set above):"
    for f in fields(RAFTConfig):
        if f.init and f.name in theirs and f.name not in RAFTConfig.__annotations__ and f.name not in _ABOVE:
            yield f"# {f.name}: {_yaml(_default(f))}"


# From the settings above, or not for a file.
_ABOVE = ("seed", "output_dir", "hub_token")


def _setting(settings: type, f: "Field[Any]") -> Iterator[str]:
    """Docstring and range as comments, then the default."""
    said = _docstrings(settings).get(f.name, "As in transformers.TrainingArguments, with a default of its own.")
    accepted = _accepted(get_type_hints(settings, include_extras=True)[f.name])
    yield from textwrap.wrap(
        f"{said} ({accepted})" if accepted else said, _WIDTH, initial_indent="# ", subsequent_indent="# "
    )
    yield f"{f.name}: {_yaml(_default(f))}"


def _default(f: "Field[Any]") -> Any:
    if f.default is not MISSING:
        return getattr(f.default, "value", f.default)
    return f.default_factory() if f.default_factory is not MISSING else None


def _accepted(hint: Any) -> str:
    """What a value may be, in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = next((part for part in inner[1:] if isinstance(part, Between)), None)
        return f"{_accepted(inner[0])} {limits}" if limits else _accepted(inner[0])
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(_accepted(part) for part in inner)
    words = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}
    return words.get(hint, "")


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


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _indented(lines: Iterator[str]) -> list[str]:
    return [f"  {line}" for line in lines]
