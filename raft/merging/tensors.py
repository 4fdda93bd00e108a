"""Reads and writes checkpoints tensor by tensor, so that a model need not fit into memory."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from raft.errors import ModelError
from raft.models.load import INDEX, weight_files

LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|block|h)\.(\d+)\.")
HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out)\.")
_AFTER_LAYERS = re.compile(r"(?:^|\.)(?:lm_head|embed_out|norm|norm_f|ln_f|final_layernorm|final_layer_norm)\.")
SHARD_BYTES = 2 << 30

Weights = str | Path | Mapping[str, Tensor]  # a folder of safetensors, one such file, or a state dict


def open_tensors(source: Weights, files: ExitStack) -> dict[str, Callable[[], Tensor]]:
    """Maps each tensor's name to a function that reads it while `files` is open. ModelError if there are no weights."""
    if isinstance(source, Mapping):
        names = {tensor.data_ptr(): name for name, tensor in reversed(list(source.items()))}  # a tied head counts once
        return {name: partial(_on_cpu, source[name]) for name in names.values()}
    tensors: dict[str, Callable[[], Tensor]] = {}
    place = Path(source)
    for path in [place] if place.suffix == ".safetensors" else weight_files(place):
        opened = files.enter_context(safe_open(path, framework="pt"))
        tensors |= {name: partial(opened.get_tensor, name) for name in opened.keys()}  # noqa: SIM118
    return tensors


def write_tensors(tensors: Iterable[tuple[str, Tensor]], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes model.safetensors, or several shards and their index. At most one shard is in memory.

    A shard has at most `shard_bytes` bytes, unless it is a single larger tensor.
    """
    shards: list[list[str]] = []
    total = 0
    for number, shard in enumerate(_shards(tensors, shard_bytes), 1):
        save_file(shard, folder / f"model-{number:05}.safetensors", metadata={"format": "pt"})
        shards.append(list(shard))
        total += sum(tensor.nbytes for tensor in shard.values())
        del shard  # before the next one is read
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for number, name in enumerate(names, 1):
        (folder / f"model-{number:05}.safetensors").rename(folder / name)
    if len(shards) > 1:
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    held = 0
    for name, tensor in tensors:
        if shard and held + tensor.nbytes > shard_bytes:
            yield shard
            shard, held = {}, 0
        shard[name] = tensor.contiguous()
        held += tensor.nbytes
    yield shard


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()


def depths(names: Iterable[str]) -> dict[str, float]:
    """Depth of each tensor's layer, from 0 (first) to 1 (last). Tensors before the layers get 0, those after them 1."""
    numbers = {name: int(found[1]) for name in names if (found := LAYER.search(name))}
    last = max(numbers.values(), default=0)
    if last == 0:
        raise ModelError("no two tensor names have layer numbers such as 'model.layers.0.': depths are not known")
    return {
        name: numbers[name] / last if name in numbers else float(bool(_AFTER_LAYERS.search(name))) for name in names
    }


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype to combine weights in: float64 for float64, else float32."""
    return torch.promote_types(tensor.dtype, torch.float32)
