"""How far training moved the weights: relative L2 distance from the base model, layer by layer (the paper's Fig. 3)."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TypedDict

import torch
from safetensors import safe_open
from torch import Tensor

from raft.errors import ModelError

_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|block|h)\.(\d+)\.")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|embed_in|embed_out|lm_head)\.")
_HEAD = re.compile(r"(?:^|\.)lm_head\.")


class WeightDistance(TypedDict):
    layers: dict[str, float]  # layer number as a string, in ascending order
    mean: float  # over layers, each counts once
    embeddings: float  # input embedding, and the head where it is untied
    total: float  # all tensors as one vector


Weights = str | Path | Mapping[str, Tensor]  # a folder of safetensors, one such file, or a state dict


def weight_distance(base: Weights, other: Weights) -> WeightDistance:
    """||w - w0|| / ||w0|| with w0 from `base` and w from `other`.

    The tensors of a layer count as one vector. Tensors are read one at a time, so the models need not fit in memory.
    """
    moved: dict[str, float] = defaultdict(float)  # group -> ||w - w0||^2
    size: dict[str, float] = defaultdict(float)  # group -> ||w0||^2
    with ExitStack() as files:
        first, second = _open(base, files), _open(other, files)
        _same_names(first, second)
        for name in sorted(set(first) & set(second)):
            w0, w = first[name](), second[name]()
            if w0.shape != w.shape:
                shapes = f"{tuple(w0.shape)} in the base, {tuple(w.shape)} in the other model"
                raise ModelError(f"weight distance: {name} has shape {shapes}")
            if not w0.is_floating_point():
                continue
            groups = ["total"]
            if layer := _LAYER.search(name):
                groups.append(layer[1])
            elif _EMBEDDING.search(name):
                groups.append("embeddings")
            squares = _square_norm(w0.float()), _square_norm(w.float() - w0.float())
            for group in groups:
                size[group] += squares[0]
                moved[group] += squares[1]
    layers = {name: _ratio(name, moved, size) for name in sorted((g for g in size if g.isdigit()), key=int)}
    if not layers:
        raise ModelError("weight distance: no tensor name has a layer number such as 'model.layers.0.'")
    return WeightDistance(
        layers=layers,
        mean=sum(layers.values()) / len(layers),
        embeddings=_ratio("embeddings", moved, size),
        total=_ratio("total", moved, size),
    )


def _square_norm(tensor: Tensor) -> float:
    return torch.linalg.vector_norm(tensor, dtype=torch.float64).item() ** 2


def _ratio(group: str, moved: Mapping[str, float], size: Mapping[str, float]) -> float:
    if size.get(group, 0.0) == 0.0:
        if moved.get(group, 0.0) == 0.0:
            return 0.0
        raise ModelError(f"weight distance: the base weights of group {group!r} are all zero")
    return (moved[group] / size[group]) ** 0.5


def _open(source: Weights, files: ExitStack) -> dict[str, Callable[[], Tensor]]:
    """Tensor name -> a function that reads it."""
    if isinstance(source, Mapping):
        names = {tensor.data_ptr(): name for name, tensor in reversed(list(source.items()))}  # a tied head counts once
        return {name: partial(_on_cpu, source[name]) for name in names.values()}
    tensors: dict[str, Callable[[], Tensor]] = {}
    for path in _weight_files(Path(source)):
        opened = files.enter_context(safe_open(path, framework="pt"))
        tensors |= {name: partial(opened.get_tensor, name) for name in opened.keys()}  # noqa: SIM118
    return tensors


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()


def _weight_files(path: Path) -> list[Path]:
    if path.is_file() and path.suffix == ".safetensors":
        return [path]
    index = path / "model.safetensors.index.json"
    if index.is_file():
        return [path / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    raise ModelError(f"{path}: no model.safetensors and no model.safetensors.index.json in it")


def _same_names(first: Mapping[str, object], second: Mapping[str, object]) -> None:
    # A tied head is written by state_dict() and left out of a saved checkpoint, so it may be on one side only.
    alone = [name for name in sorted(set(first) ^ set(second)) if not _HEAD.search(name)]
    if alone:
        side = "the base" if alone[0] in first else "the other model"
        raise ModelError(f"weight distance: {alone[0]} is only in {side} ({len(alone)} such tensors)")
