"""The settings of a run: one typed tree, filled from YAML and key=value, all of it checked before any work.

`train` holds fields of `RAFTConfig`, which itself extends transformers.TrainingArguments; only `check_train` imports
it.
"""

import difflib
import math
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from raft.errors import ConfigError
from raft.runs import write_text


@dataclass(frozen=True)
class Between:
    """The range of a number, both ends allowed."""

    low: float
    high: float = float("inf")

    def __str__(self) -> str:
        return f"of at least {self.low}" if self.high == float("inf") else f"from {self.low} to {self.high}"

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


Count = Annotated[int, Between(1)]
Share = Annotated[float, Between(0, 1)]
Temperature = Annotated[float, Between(0)]  # of sampling, where 0 means greedy
EngineKind = Literal["auto", "vllm", "hf"]
PromptWording = Literal["chat", "plain"]  # the names of raft.prompts.WORDINGS


@dataclass
class RefineSettings:
    """Stage 1: rewrite, filter, fuse."""

    embedding_model: str = "minilm"
    """Sentence-embedding model of the filter: "minilm" (the packaged MiniLM) or the path of a sentence-transformers
    model."""
    tau: Share = 0.8
    """A rewriting is kept if its cosine similarity to the answer is at least this (Eq. 3)."""
    min_score: Share = 0.8
    """A text whose mean score of the judges is below this is not used."""
    max_new_words: Share = 0.0
    """Share of a fused sentence's content words that may be new: neither in the question nor in one sentence of the
    reference. More for a fusion model that is known not to invent."""
    max_lost_words: Share = 0.0
    """Share of a sentence's content words that a fused answer may lack of the sentence of the reference that it says.
    Whole sentences may be left out."""
    prompts: PromptWording = "chat"
    """How the model is asked for rewritings and fusions: "chat" for instruction models, "plain" as the micro-world's
    base was trained."""
    rounds: Count = 3
    """Rounds of fusion at most; the candidate with the best mean score of the judges wins."""
    accept_score: Share = 0.8
    """A candidate with this mean score ends the rounds early."""
    rewrite_temperature: Temperature = 0.2
    """Sampling temperature of the rewriting."""
    fuse_temperature: Temperature = 0.2
    """Sampling temperature of the fusion."""
    max_tokens: Count = 512
    """Tokens of a rewriting or fusion at most."""
    batch_size: Count = 64
    """Rows in one call of the engine; a kill loses at most the batch in flight."""
    engine: EngineKind = "auto"
    """Generation engine; "auto" is vLLM where it is installed."""
    fusion_model: str = "local"
    """Who fuses: "local" is the model itself."""
    max_model_len: Count = 2048
    """Tokens of prompt and completion together at most."""

    def __post_init__(self) -> None:
        _check_all(self, "refine")


@dataclass
class EvalSettings:
    """Answering the items of an evaluation."""

    batch_size: Count = 64
    """Items in one call of the engine."""
    max_tokens: Count = 512
    """Tokens of an answer at most."""
    engine: EngineKind = "auto"
    """Generation engine; "auto" is vLLM where it is installed."""
    temperature: Temperature = 0.0
    """Sampling temperature; 0 is greedy."""
    max_model_len: Count = 2048
    """Tokens of prompt and answer together at most."""

    def __post_init__(self) -> None:
        _check_all(self, "evaluate")


@dataclass
class Config:
    """All settings of a run, as config.yaml of the run folder holds them."""

    model: str | None = None
    """The instruction model to start from: a folder or a name on the Hub."""
    data: str | None = None
    """The rows, .jsonl or .parquet."""
    seed: Annotated[int, Between(0, 2**32 - 1)] = 0
    """Seed of everything random in the run."""
    run: str | None = None
    """The run folder."""
    refine: RefineSettings = field(default_factory=RefineSettings)
    """Settings of `raft refine`."""
    train: dict[str, Any] = field(default_factory=dict)
    """Fields of RAFTConfig (and so of transformers.TrainingArguments) that differ from their defaults."""
    evaluate: EvalSettings = field(default_factory=EvalSettings)
    """Settings of `raft eval`."""

    def __post_init__(self) -> None:
        _check_all(self, "")


SECTIONS: dict[str, type] = {"refine": RefineSettings, "evaluate": EvalSettings}


def load_config(
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    section: str | None = None,
) -> Config:
    """Settings from a YAML file (None: the defaults), then `overrides` such as "refine.tau=0.7", the last one winning.

    `section` is tried first for names without a dot: within "refine", "tau=0.7" is "refine.tau=0.7".
    """
    tree: dict[str, Any] = {}
    if path is not None:
        text = _read(path)
        for name, (value, line) in _flatten(_compose(text, path), path).items():
            _set(tree, name, value, f"{path}, line {line}")
    for override in overrides:
        name, separator, text = override.partition("=")
        name = name.strip()
        if not separator or not name:
            raise ConfigError(f"expected a setting as key=value, found {override!r}")
        if section and "." not in name and (name not in _NAMES or f"{section}.{name}" in _NAMES):
            name = f"{section}.{name}"
        _set(tree, name, _parse(text, override), override, text)
    built = {name: cls(**tree.pop(name, {})) for name, cls in SECTIONS.items()}
    return Config(**tree, **built)


def save_config(config: Config, path: str | Path) -> None:
    """Writes all settings, defaults included, as YAML that `load_config` reads back."""
    write_text(path, yaml.dump(asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def check_train_keys(train: Mapping[str, Any]) -> dict[str, Any]:
    """The `train` settings with names and simple types checked against RAFTConfig. Imports torch."""
    from raft.train.config import RAFTConfig

    known = {f.name for f in fields(RAFTConfig) if f.init}
    hints = get_type_hints(RAFTConfig)
    checked = {}
    for name, value in train.items():
        if name == "hub_token":
            raise ConfigError(
                "train.hub_token: a secret does not belong into settings that are written to disk, set HF_TOKEN instead"
            )
        if name not in known:
            raise ConfigError(_unknown(f"train.{name}", [f"train.{k}" for k in sorted(known)]))
        checked[name] = _value(hints[name], value, f"train.{name}")
    return checked


def check_train(config: Config) -> Any:
    """The RAFTConfig of these settings; whatever it or `raft train` refuses is a one-line `ConfigError`."""
    from raft.train.config import RAFTConfig

    arguments = {"seed": config.seed, "output_dir": config.run, **check_train_keys(config.train)}
    try:
        checked = RAFTConfig(**arguments)
    except ConfigError as error:
        raise ConfigError(f"train.{error}") from error
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise ConfigError(f"train: {' '.join(str(error).split())}") from error
    for name, without in (("eval_strategy", "no"), ("eval_on_start", False)):
        if getattr(checked, name) != without:
            raise ConfigError(
                f"train.{name}: expected {str(without).lower()}, `raft train` has no rows to evaluate on (RAFTTrainer "
                f"takes them as eval_dataset), found {config.train[name]!r}"
            )
    return checked


def _set(tree: dict[str, Any], name: str, value: Any, place: str, text: str | None = None) -> None:
    """Checks one setting and puts it into the tree; `text` is the value as typed, for settings that are text."""
    head, _, rest = name.partition(".")
    if head == "train" and rest:
        tree.setdefault("train", {})[rest] = value
        return
    if name not in _NAMES:
        raise ConfigError(f"{place}: {_unknown(name, _NAMES)}")
    try:
        value = _value(_NAMES[name], value, name)
    except ConfigError as error:
        if text is None or not _takes_text(_NAMES[name]) or isinstance(value, (list, dict)):
            raise ConfigError(f"{place}: {error}") from error
        value = text
    if rest:
        tree.setdefault(head, {})[rest] = value
    else:
        tree[name] = value


def _unknown(name: str, known: Iterable[str]) -> str:
    known = list(known)
    same_end = [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]]
    nearest = same_end or difflib.get_close_matches(name, known, 1, 0.5)
    if not nearest:
        ends = {k.rpartition(".")[2]: k for k in known}
        nearest = [ends[end] for end in difflib.get_close_matches(name.rpartition(".")[2], ends, 1, 0.6)]
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known[:20])}"
    return f"unknown setting {name!r}, {hint}"


def _check_all(settings: Any, prefix: str) -> None:
    """Checks every field of a dataclass of settings, and that a prompt has room beside the completion."""
    hints = get_type_hints(type(settings), include_extras=True)
    for f in fields(settings):
        name = f"{prefix}.{f.name}" if prefix else f.name
        setattr(settings, f.name, _value(hints[f.name], getattr(settings, f.name), name))
    if hasattr(settings, "max_model_len") and settings.max_model_len <= settings.max_tokens:
        raise ConfigError(
            f"{prefix}.max_model_len: expected more than {prefix}.max_tokens ({settings.max_tokens}), found "
            f"{settings.max_model_len}"
        )


_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
}


def _value(hint: Any, value: Any, name: str) -> Any:
    """`value` as `hint` wants it (1 as 1.0, 1e3 as 1000), or a `ConfigError`; hints other than simple ones pass."""
    ok, converted, expected = _fit(hint, value)
    if not ok:
        raise ConfigError(f"{name}: expected {expected}, found {value!r}")
    return converted


def _fit(hint: Any, value: Any) -> tuple[bool, Any, str]:
    """Whether the value fits, the value converted, and what would have been expected."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, limits = get_args(hint)[:2]
        ok, converted, expected = _fit(inner, value)
        return ok and converted in limits, converted, f"{expected} {limits}"
    if origin is Literal:
        choices = get_args(hint)
        return value in choices, value, "one of " + ", ".join(map(str, choices))
    if origin in (Union, types.UnionType):
        fits = [_fit(choice, value) for choice in get_args(hint)]
        # The exact one first: True is no number, and 1 stays an int where int and float are allowed.
        best = sorted((f for f in fits if f[0]), key=lambda f: type(f[1]) is not type(value))
        expected = " or ".join(dict.fromkeys(f[2] for f in fits))
        return bool(best), best[0][1] if best else value, expected
    if hint is type(None):
        return value is None, value, "null"
    kind = origin or hint
    if kind not in _WORDS:
        return True, value, ""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    elif kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    ok = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    return ok and not (kind is float and math.isnan(value)), value, _WORDS[kind]


def _takes_text(hint: Any) -> bool:
    return hint is str or str in get_args(hint)


def _names() -> dict[str, Any]:
    """Every dotted name outside `train`, with its type."""
    names = get_type_hints(Config, include_extras=True)
    for section, cls in SECTIONS.items():
        names |= {f"{section}.{k}": hint for k, hint in get_type_hints(cls, include_extras=True).items()}
    return {k: hint for k, hint in names.items() if k not in (*SECTIONS, "train")}


_NAMES = _names()


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with the scalars that people expect: 5e-6 is a number, and yes, no, on and off are texts."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("null", "int", "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = (
    r"[-+]?(\d[\d_]*)?\.?\d[\d_]*([eE][-+]?\d+)?|[-+]?\d[\d_]*\.([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that `_Loader` or a plain YAML 1.1 reader would take for something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # PyYAML escapes YAML's rarer line breaks between double quotes only; elsewhere it reads them back as spaces.
    style = '"' if any(character in text for character in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)
for _reader in (_Loader, _Dumper):
    _reader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^({_FLOAT})$"), list("-+0123456789."))


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file, expected YAML with settings") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a directory, expected a YAML file with settings") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a YAML file: {error}") from error


def _compose(text: str, path: str | Path) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_line_of(error)}: not valid YAML: {_problem(error)}") from error


def _flatten(node: yaml.Node | None, path: str | Path) -> dict[str, tuple[Any, int]]:
    """Dotted name -> (value, line number from 1) of every setting in the file."""
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}, line {node.start_mark.line + 1}: expected settings as `name: value`")
    settings: dict[str, tuple[Any, int]] = {}

    def visit(mapping: yaml.MappingNode, prefix: str) -> None:
        for key, value in mapping.value:
            name, line = prefix + str(key.value), key.start_mark.line + 1
            if name in settings:
                raise ConfigError(
                    f"{path}, line {line}: setting {name!r} is there twice, first in line {settings[name][1]}"
                )
            is_section = not prefix and name in (*SECTIONS, "train")
            if is_section and isinstance(value, yaml.MappingNode):
                visit(value, f"{name}.")
            elif is_section and _construct(value, path) is not None:
                raise ConfigError(
                    f"{path}, line {line}: {name}: expected a mapping of settings, found {_construct(value, path)!r}"
                )
            elif not is_section:
                settings[name] = (_construct(value, path), line)

    visit(node, "")
    return settings


def _construct(node: yaml.Node, path: str | Path) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}, line {node.start_mark.line + 1}: not valid YAML: {_problem(error)}") from error
    finally:
        loader.dispose()


def _parse(text: str, override: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader) if text.strip() else text
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{override}: the value is not valid YAML: {_problem(error)}") from error


def _line_of(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}" if mark else ""


def _problem(error: Exception) -> str:
    return " ".join((getattr(error, "problem", None) or str(error)).split())
