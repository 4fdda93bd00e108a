"""Relative L2 distance of trained weights from the base model, by layer (the paper's Fig. 3)."""

import re
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TypedDict

import torch
from torch import Tensor

from raft.errors import ModelError
from raft.merging.tensors import HEAD, LAYER, Weights, open_tensors

_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|embed_in|embed_out|lm_head)\.")


class WeightDistance(TypedDict):
    layers: dict[str, float]  # layer number as a string, in ascending order
    mean: float  # unweighted mean over the layers
    embeddings: float  # input embedding, and the head if it is not tied
    total: float  # all tensors as one vector


def weight_distance(base: Weights, other: Weights) -> WeightDistance:
    """||w - w0|| / ||w0|| with w0 from `base` and w from `other`. ModelError if tensor names or shapes differ.

    All tensors of a layer form one vector. Tensors are read one at a time, so the models need not fit in memory.
    """
    moved: dict[str, float] = defaultdict(float)  # group -> ||w - w0||^2
    size: dict[str, float] = defaultdict(float)  # group -> ||w0||^2
    with ExitStack() as files:
        first, second = open_tensors(base, files), open_tensors(other, files)
        _same_names(first, second)
        for name in sorted(set(first) & set(second)):
            w0, w = first[name](), second[name]()
            if w0.shape != w.shape:
                shapes = f"{tuple(w0.shape)} in the base, {tuple(w.shape)} in the other model"
                raise ModelError(f"weight distance: {name} has shape {shapes}")
            if not w0.is_floating_point():
                continue
            groups = ["total"]
            if layer := LAYER.search(name):
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


def _same_names(first: Mapping[str, object], second: Mapping[str, object]) -> None:
    # A tied head is in state_dict() but not in a saved checkpoint, so one side may lack it.
    alone = [name for name in sorted(set(first) ^ set(second)) if not HEAD.search(name)]
    if alone:
        side = "the base" if alone[0] in first else "the other model"
        raise ModelError(f"weight distance: {alone[0]} is only in {side} ({len(alone)} such tensors)")
