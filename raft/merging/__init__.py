"""`raft merge`: makes one checkpoint of a base model and tuned models, on disk, tensor by tensor.

Each rule is a subclass of `Merge` in a file of this folder. `MERGES` finds them all.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path

from torch import Tensor

from raft.discovery import named_subclasses
from raft.errors import ConfigError, ModelError
from raft.merging.base import Merge
from raft.merging.tensors import HEAD, open_tensors, write_tensors
from raft.models.load import check_weights, weight_files
from raft.runs import write_json
from raft.settings.check import check, field_hints

__all__ = ["MERGES", "Merge", "make_merge", "merge", "merge_in_place"]

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.gguf", "merge.json")
# Files that a training checkpoint has besides the model.
_TRAINING = ("optimizer*", "scheduler*", "rng_state*", "trainer_state.json", "raft_*.json", "global_step*", "*.pth")
_EMBEDDING = ("model.embed_tokens.weight", "transformer.wte.weight", "gpt_neox.embed_in.weight")
Read = Callable[[], Tensor]


MERGES: dict[str, type[Merge]] = named_subclasses(Merge, __name__, __path__)


def make_merge(name: str, options: Mapping[str, object]) -> Merge:
    """The rule `name` with these options. ConfigError for an unknown name or option, or a number outside its range."""
    if name not in MERGES:
        raise ConfigError(f"merge: expected one of {', '.join(MERGES)}, found {name!r}")
    hints = field_hints(MERGES[name])
    for key in options:
        if key not in hints:
            raise ConfigError(f"merge {name}: expected an option of {', '.join(hints) or 'none'}, found {key!r}")
    checked = {key: check(hints[key], value, f"merge {name}: {key}") for key, value in options.items()}
    return MERGES[name](**checked)


def merge(rule: Merge, base: Path | None, tuned: Sequence[Path], out: Path) -> None:
    """Writes the merged model to the new folder `out`. It has weights in the dtype of the first tuned model, that
    model's other files, and merge.json with rule, options and inputs.

    At most one shard of 2 GiB is in memory. The folder appears only when complete. ConfigError or ModelError if rule
    and models do not fit together.
    """
    if not rule.needs_base:
        base = None
    elif base is None:
        raise ConfigError(f"merge {rule.name}: expected the base model (--base), found none")
    if len(tuned) < 2 if rule.takes_several else len(tuned) != 1:
        expected = "two or more tuned models" if rule.takes_several else "one tuned model"
        raise ConfigError(f"merge {rule.name}: expected {expected}, found {len(tuned)}")
    if out.exists():
        raise ConfigError(f"{out}: exists already, expected a folder that merge makes anew")
    for folder in (*tuned, *([base] if base is not None else [])):
        _check_plain(folder)
    options = {f.name: getattr(rule, f.name) for f in fields(rule) if f.init}
    inputs = {"base": None if base is None else str(base), "tuned": [str(folder) for folder in tuned]}
    out.parent.mkdir(parents=True, exist_ok=True)
    with _built(out.with_name(f".{out.name}.partial")) as partial:
        ignored = shutil.ignore_patterns(*_WEIGHTS, *_TRAINING)
        shutil.copytree(tuned[0], partial, ignore=ignored, dirs_exist_ok=True)
        _write_merged(rule, base, tuned, partial)
        write_json(partial / "merge.json", {"merge": rule.name, "options": options, **inputs})
        os.replace(partial, out)


def merge_in_place(rule: Merge, base: Path, tuned: Path) -> None:
    """Merges `base` into the model in the folder `tuned`. Its old weights are deleted once the new ones are written."""
    check_weights(tuned)
    old = {*weight_files(tuned), *tuned.glob("*.safetensors.index.json")}
    with _built(tuned / ".merged") as partial:
        _write_merged(rule, base, [tuned], partial)
        # The index last: until then the old weights are those of the folder.
        new = sorted(partial.iterdir(), key=lambda path: path.suffix == ".json")
        for path in new:
            os.replace(path, tuned / path.name)
        for path in old - {tuned / path.name for path in new}:
            path.unlink()


@contextmanager
def _built(folder: Path) -> Iterator[Path]:
    """A new folder, which is removed at the end unless it was moved away."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_plain(folder: Path) -> None:
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder, expected a checkpoint with safetensors weights")
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder}: has LoRA adapters, expected a model into which they are merged (merge_and_unload)")
    check_weights(folder)


def _write_merged(rule: Merge, base: Path | None, tuned: Sequence[Path], folder: Path) -> None:
    with ExitStack() as files:
        before = None if base is None else open_tensors(base, files)
        after = [open_tensors(path, files) for path in tuned]
        names = {name for of_one in after for name in of_one}
        after = [_with_head(of_one, names) for of_one in after]
        if before is not None:
            before = _with_head(before, names)
        for path, found in (*zip(tuned, after, strict=True), *([(base, before)] if before is not None else [])):
            _check_same(found, after[0], f"{path} and {tuned[0]}")
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


def _with_head(tensors: dict[str, Read], names: Iterable[str]) -> dict[str, Read]:
    """Adds the tied head, if it is among `names`: some checkpoints leave it out, and it is the embedding."""
    missing = [name for name in names if name not in tensors and HEAD.search(name)]
    embedding = next((tensors[name] for name in _EMBEDDING if name in tensors), None)
    return tensors if embedding is None else {**tensors, **dict.fromkeys(missing, embedding)}


def _check_same(some: Iterable[str], first: Iterable[str], place: str) -> None:
    """ModelError unless both have the same names; `some` may have a head that the first tuned model has not."""
    some, first = set(some), set(first)
    alone = [name for name in sorted(some ^ first) if not (name in some and HEAD.search(name))]
    if alone:
        raise ModelError(f"{place}: {alone[0]} is only in one ({len(alone)} such tensors): another architecture")
