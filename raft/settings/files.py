"""Settings from a YAML file and from key=value, and config.yaml with all of them."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, MappingNode, Node, SafeRepresenter, YAMLError
from ruamel.yaml.resolver import VersionedResolver, implicit_resolvers

from raft.errors import ConfigError
from raft.runs import write_text
from raft.settings.check import check, expected, unknown
from raft.settings.schema import NAMES, RENAMED, SECTIONS, Config


def load_config(path: str | Path | None = None, overrides: Sequence[str] = (), *, section: str | None = None) -> Config:
    """Settings from a YAML file (None: the defaults), then `overrides` such as "refine.tau=0.7", the last one winning.

    `section` is tried first for names without a dot: within "refine", "tau=0.7" is "refine.tau=0.7".
    """
    tree: dict[str, Any] = {}
    if path is not None:
        for name, (value, line) in _settings_of(path).items():
            _set(tree, name, value, f"{path}, line {line}")
    for override in overrides:
        name, separator, text = override.partition("=")
        name = name.strip()
        if not separator or not name:
            raise ConfigError(f"expected a setting as key=value, found {override!r}")
        if section and "." not in name and (name not in NAMES or f"{section}.{name}" in NAMES):
            name = f"{section}.{name}"
        _set(tree, name, _parse(text, override), override, text)
    built = {name: kind(**tree.pop(name, {})) for name, kind in SECTIONS.items()}
    return Config(**tree, **built)


def save_config(config: Config, path: str | Path) -> None:
    """Writes all settings, defaults included, as YAML that `load_config` reads back."""
    write_text(path, to_yaml(asdict(config)))


def read_yaml(path: str | Path) -> object:
    """The value of a YAML file, whatever it is of; `ConfigError` where it is not YAML."""
    node = _compose(path)
    return None if node is None else _construct(node, path)


def to_yaml(tree: Mapping[str, object]) -> str:
    """A mapping as YAML, a line each name."""
    stream = io.StringIO()
    _yaml().dump(tree, stream)
    return stream.getvalue()


def _set(tree: dict[str, Any], name: str, value: object, place: str, text: str | None = None) -> None:
    """Checks one setting and puts it into the tree; `text` is the value as typed, for settings that are text."""
    name = RENAMED.get(name, name)
    section, _, rest = name.partition(".")
    if not (section == "train" and rest):  # those are checked by `check_train`
        if name not in NAMES:
            raise ConfigError(f"{place}: {unknown(name, NAMES)}")
        try:
            value = check(NAMES[name], value, name)
        except ConfigError as error:
            if text is None or "a text" not in expected(NAMES[name]) or isinstance(value, (list, dict)):
                raise ConfigError(f"{place}: {error}") from error
            value = text
    if rest:
        tree.setdefault(section, {})[rest] = value
    else:
        tree[name] = value


def _settings_of(path: str | Path) -> dict[str, tuple[object, int]]:
    """Dotted name -> (value, line number from 1) of every setting in the file."""
    root = _compose(path)
    if root is None:
        return {}
    if not isinstance(root, MappingNode):
        raise ConfigError(f"{path}, line {_line(root)}: expected settings as `name: value`")
    settings: dict[str, tuple[object, int]] = {}

    def visit(mapping: MappingNode, prefix: str) -> None:
        for key, node in mapping.value:
            name, line = prefix + str(key.value), _line(key)
            if name in settings:
                raise ConfigError(
                    f"{path}, line {line}: setting {name!r} is there twice, first in line {settings[name][1]}"
                )
            if prefix or name not in (*SECTIONS, "train"):
                settings[name] = (_construct(node, path), line)
            elif isinstance(node, MappingNode):
                visit(node, f"{name}.")
            elif (value := _construct(node, path)) is not None:
                raise ConfigError(f"{path}, line {line}: {name}: expected a mapping of settings, found {value!r}")

    visit(root, "")
    return settings


class _Resolver(VersionedResolver):
    """YAML 1.2, in which 5e-6 is a number and yes, no, on and off are texts; dates and a lone = are texts here too."""

    def resolve(self, kind: object, value: object, implicit: object) -> object:
        tag = super().resolve(kind, value, implicit)
        is_text = str(tag).rpartition(":")[2] in ("timestamp", "value")
        return self.DEFAULT_SCALAR_TAG if is_text else tag


class _Representer(SafeRepresenter):
    """Quotes every text that a reader of YAML 1.1 or 1.2 would take for something else."""


def _represent_text(representer: _Representer, text: str) -> Node:
    other = any(pattern.match(text) for _, _, pattern, _ in implicit_resolvers)
    # YAML's rarer line breaks are read back as they were only where they are escaped.
    style = '"' if any(character in text for character in "\x85\u2028\u2029") else "'" if other else None
    return representer.represent_scalar("tag:yaml.org,2002:str", text, style)


def _represent_number(representer: _Representer, number: float) -> Node:
    node = SafeRepresenter.represent_float(representer, number)
    if "." not in node.value:  # 5e-06 is a text to YAML 1.1
        node.value = node.value.replace("e", ".0e")
    return node


_Representer.add_representer(str, _represent_text)
_Representer.add_representer(float, _represent_number)


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver, yaml.Representer = _Resolver, _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # typed by its default, None
    return yaml


def _compose(path: str | Path) -> Node | None:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = str(getattr(error, "strerror", error)).lower()
        raise ConfigError(f"{path}: cannot be read as YAML with settings: {reason}") from error
    with _valid(Path(path)):
        return _yaml().compose(text)


def _construct(node: Node, path: str | Path) -> object:
    with _valid(f"{path}, line {_line(node)}"):
        return _yaml().constructor.construct_document(node)


def _parse(text: str, override: str) -> object:
    with _valid(override):
        return _yaml().load(text) if text.strip() else text


@contextmanager
def _valid(place: str | Path) -> Iterator[None]:
    """What YAML refuses within it is a one-line `ConfigError`, with the line where a file is given without one."""
    try:
        yield
    except (YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark and isinstance(place, Path) else ""
        problem = " ".join((getattr(error, "problem", None) or str(error)).split())
        raise ConfigError(f"{place}{line}: not valid YAML: {problem}") from error


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1
