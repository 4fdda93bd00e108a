"""`raft merge`: makes one checkpoint of a base model and tuned models, on disk, tensor by tensor.

Each rule is a subclass of `Merge` in a file of this folder. `MERGES` finds them all.
"""

import importlib
import os
import pkgutil
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path

from torch import Tensor

from raft.errors import ConfigError, ModelError
from raft.merging.base import Merge
from raft.merging.tensors import HEAD, open_tensors, write_tensors
from raft.models.load import weight_files
from raft.runs import write_json

__all__ = ["MERGES", "Merge", "make_merge", "merge", "merge_in_place"]

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.gguf", "merge.json")
# Files that a training checkpoint has besides the model.
_TRAINING = ("optimizer*", "scheduler*", "rng_state*", "trainer_state.json", "raft_*.json", "global_step*", "*.pth")
_EMBEDDING = ("model.embed_tokens.weight", "transformer.wte.weight")
Read = Callable[[], Tensor]


def _found() -> dict[str, type[Merge]]:
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    return {rule.name: rule for rule in sorted(Merge.__subclasses__(), key=lambda rule: rule.name)}


MERGES: dict[str, type[Merge]] = _found()


def make_merge(name: str, options: Mapping[str, object]) -> Merge:
    """The rule `name` with these options. ConfigError for an unknown name or option, or a number outside its range."""
    if name not in MERGES:
        raise ConfigError(f"merge: expected one of {', '.join(MERGES)}, found {name!r}")
    known = [f.name for f in fields(MERGES[name]) if f.init]
    for key, value in options.items():
        if key not in known:
            raise ConfigError(f"merge {name}: expected an option of {', '.join(known) or 'none'}, found {key!r}")
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
            raise ConfigError(f"merge {name}: {key}: expected a number from 0 to 1, found {value!r}")
    return MERGES[name](**options)


def merge(rule: Merge, base: Path | None, tuned: Sequence[Path], out: Path) -> None:
    """Writes the merged model to the new folder `out`. It has weights in the dtype of the first tuned model, that
    model's other files, and merge.json with rule, options and inputs.

    At most one shard of 2 GiB is in memory. The folder appears only when complete. ConfigError or ModelError if rule
    and models do not fit together.
    """
    if rule.needs_base and base is None:
        raise ConfigError(f"merge {rule.name}: expected the base model (--base), found none")
    if len(tuned) > rule.most_tuned or (rule.most_tuned > 1 and len(tuned) < 2) or not tuned:
        expected = "two or more tuned models" if rule.most_tuned > 1 else "one tuned model"
        raise ConfigError(f"merge {rule.name}: expected {expected}, found {len(tuned)}")
    if out.exists():
        raise ConfigError(f"{out}: exists already, expected a folder that merge makes anew")
    for folder in (*tuned, *([base] if base is not None and rule.needs_base else [])):
        _check_plain(folder)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(tuned[0], partial, ignore=shutil.ignore_patterns(*_WEIGHTS, *_TRAINING))
    _write_merged(rule, base if rule.needs_base else None, tuned, partial)
    made = {"merge": rule.name, "options": {f.name: getattr(rule, f.name) for f in fields(rule) if f.init}}
    write_json(
        partial / "merge.json",
        {**made, "base": str(base) if rule.needs_base else None, "tuned": [str(folder) for folder in tuned]},
    )
    os.replace(partial, out)


def merge_in_place(rule: Merge, base: Path, tuned: Path) -> None:
    """Merges `base` into the model in the folder `tuned`. Its old weights are deleted once the new ones are written."""
    old = weight_files(tuned)
    partial = tuned / ".merged"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    _write_merged(rule, base, [tuned], partial)
    for path in (*old, *tuned.glob("*.safetensors.index.json")):
        path.unlink()
    for path in partial.iterdir():
        os.replace(path, tuned / path.name)
    partial.rmdir()


def _check_plain(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder}: has LoRA adapters, expected a model into which they are merged (merge_and_unload)")
    weight_files(folder)


def _write_merged(rule: Merge, base: Path | None, tuned: Sequence[Path], folder: Path) -> None:
    with ExitStack() as files:
        before = None if base is None else open_tensors(base, files)
        after = [open_tensors(path, files) for path in tuned]
        for path, other in zip(tuned[1:], after[1:], strict=True):
            _check_same(other, after[0], str(path))
        if before is not None:
            before = _with_head(before, after[0])
            _check_same(before, after[0], str(base))
        write_tensors(_merged(rule, before, after), folder)


def _merged(rule: Merge, base: dict[str, Read] | None, tuned: list[dict[str, Read]]) -> Iterator[tuple[str, Tensor]]:
    names = list(tuned[0])
    rule.begin(names)
    for name in names:
        given = [of_one[name]() for of_one in tuned]
        before = None if base is None else base[name]()
        for other in (*given[1:], *([] if before is None else [before])):
            if other.shape != given[0].shape:
                raise ModelError(f"merge: {name} has shapes {tuple(given[0].shape)} and {tuple(other.shape)}")
        if given[0].is_floating_point():
            yield name, rule.tensor(name, before, given).to(given[0].dtype)
        else:
            yield name, given[0]


def _with_head(base: dict[str, Read], tuned: Mapping[str, Read]) -> dict[str, Read]:
    """Adds the tied head, which some checkpoints leave out: it is the base's embedding."""
    missing = [name for name in tuned if name not in base and HEAD.search(name)]
    embedding = next((base[name] for name in _EMBEDDING if name in base), None)
    return base if embedding is None else {**base, **dict.fromkeys(missing, embedding)}


def _check_same(some: Mapping[str, object], expected: Mapping[str, object], place: str) -> None:
    missing = [name for name in expected if name not in some]
    if missing:
        raise ModelError(f"{place}: has no tensor {missing[0]} ({len(missing)} are missing): another architecture")
