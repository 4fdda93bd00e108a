"""How an engine sees the weights of the model under training: shared with it, copied from it, or read from disk.

vLLM fuses q/k/v and gate/up projections into one tensor each, rows under rows, and pads the vocabulary at its end. So
every weight of a Hugging Face model is a block of whole rows of one of vLLM's tensors, and such a block is contiguous:
the model's parameter can simply BE that block. Training then writes where generation reads; nothing is synchronised.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raft.errors import EngineError


class CannotShare(Exception):
    """Why the model and the engine cannot have one copy of the weights."""


@dataclass(frozen=True)
class OwnWeights:
    """The engine's weights need no care: it is the model itself ("shared"), or was read from a folder ("disk")."""

    mode: str

    def refresh(self) -> None:
        """Nothing to do."""


class SharedWeights:
    """The model's parameters are views of the engine's storage; a refresh only makes sure that they still are."""

    mode = "shared"

    def __init__(self, model: nn.Module, slices: Mapping[str, Tensor]):
        """Moves every parameter of `model` into its slice (see `match`), which must hold the same numbers already."""
        parameters = dict(model.named_parameters())
        for name, parameter in parameters.items():
            if reason := _reason_not_to_share(name, parameter, slices.get(name)):
                raise CannotShare(reason)
        if extra := slices.keys() - parameters.keys():
            raise CannotShare(f"{min(extra)} is a buffer, or tied in the model and not in the engine")
        self._model = model
        self._homes: dict[str, int] = {}  # name -> address in the engine's storage
        for name, parameter in parameters.items():
            parameter.data = slices[name]
            self._homes[name] = parameter.data_ptr()

    def refresh(self) -> None:
        """Raises EngineError where a parameter got another storage, for the engine would go on with the old numbers."""
        moved = [n for n, p in self._model.named_parameters() if p.data_ptr() != self._homes.get(n)]
        if moved:
            raise EngineError(
                f"{len(moved)} of {len(self._homes)} parameters no longer live in the engine's storage, the first is "
                f"{moved[0]!r}: something replaced them (param.data = ..., model.to(...), FSDP, DeepSpeed, LoRA); "
                "build the engine after that, or with weights='copied'"
            )


class CopiedWeights:
    """The engine has its own copy, and a refresh overwrites it in place."""

    mode = "copied"

    def __init__(
        self, model: nn.Module, slices: Mapping[str, Tensor] | None, load: Callable[[Mapping[str, Tensor]], None]
    ):
        """`slices` as from `match`, or None where the engine's own `load` has to do it (transposed layers, MoE)."""
        self._model = model
        self._slices = slices
        self._load = load

    @torch.no_grad()
    def refresh(self) -> None:
        tensors = checkpoint_tensors(self._model)
        if self._slices is None:
            self._load(tensors)
        else:  # one call for all: parameter by parameter takes some twenty times as long on a small model
            torch._foreach_copy_(list(self._slices.values()), [tensors[name] for name in self._slices])


@torch.no_grad()
def checkpoint_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Names and tensors as a checkpoint has them: shards gathered, LoRA adapters merged, no copy without need."""
    base: Any = getattr(model, "get_base_model", None)
    if base is not None:  # a peft model
        return _merged(base())
    return {name: _whole(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()  # the first: a shard of FSDP2


def _merged(model: nn.Module) -> dict[str, Tensor]:
    """Base weights plus active LoRA adapters; the model itself stays as it is, which peft's own merge would change."""
    merged: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        path, _, leaf = name.rpartition(".")
        if path.endswith(".base_layer"):
            layer: Any = model.get_submodule(path.removesuffix(".base_layer"))
            whole = _whole(tensor)
            if leaf == "weight" and not getattr(layer, "disable_adapters", False):
                for adapter in layer.active_adapters:
                    if adapter in layer.scaling:
                        whole = whole + layer.get_delta_weight(adapter).to(whole.dtype)
            merged[name.replace(".base_layer.", ".")] = whole
        elif ".modules_to_save." in name or ".original_module." in name:
            raise EngineError(f"LoRA with modules_to_save ({name}) is not supported by this engine; use engine 'hf'")
        elif ".lora_" not in name:
            merged[name] = _whole(tensor)
    return merged


def match(engine_model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The rows of the engine's parameters that hold each of `tensors`, as views: name -> [rows, ...].

    The engine must have loaded `tensors` by its own means before: a slice counts only if it holds the same numbers, so
    whatever an engine does to rows or numbers, a wrong slice cannot pass. Raises CannotShare.
    """
    fused: Mapping[str, list[str]] = getattr(engine_model, "packed_modules_mapping", {})
    slices: dict[str, Tensor] = {}
    for name, theirs in engine_model.named_parameters():
        *above, module, leaf = name.split(".")
        parts = [".".join([*above, part, leaf]) for part in fused.get(module, [module])]
        row = 0
        for part in parts:
            if part not in tensors:
                raise CannotShare(f"the engine's {name} has no counterpart {part} in the model")
            ours = tensors[part]
            if (
                ours.dim() != theirs.dim()
                or ours.shape[1:] != theirs.shape[1:]
                or row + ours.shape[0] > theirs.shape[0]
            ):
                raise CannotShare(
                    f"{part} {list(ours.shape)} does not fit into rows of the engine's {name} {list(theirs.shape)}"
                )
            slices[part] = theirs.data[row : row + ours.shape[0]]
            if not torch.equal(slices[part], ours.to(theirs)):
                raise CannotShare(f"the engine keeps {part} in another form")
            row += ours.shape[0]
        if row != theirs.shape[0] and not hasattr(_module_of(engine_model, name), "num_embeddings_padded"):
            raise CannotShare(f"the engine's {name} has {theirs.shape[0] - row} rows more than the model gives")
    # A tied head is there under two names with one storage.
    placed = {tensors[name].data_ptr() for name in slices}
    if missing := [name for name, t in tensors.items() if name not in slices and t.data_ptr() not in placed]:
        raise CannotShare(f"the engine has no parameter for {missing[0]}")
    return slices


def _module_of(model: nn.Module, parameter_name: str) -> nn.Module:
    return model.get_submodule(parameter_name.rpartition(".")[0])


def _reason_not_to_share(name: str, parameter: nn.Parameter, home: Tensor | None) -> str | None:
    if home is None:
        return f"{name} is no parameter of the engine (an adapter, for example)"
    if hasattr(parameter, "full_tensor"):
        return f"{name} is sharded"
    if parameter.dtype != home.dtype:
        return f"{name} is {parameter.dtype}, the engine's is {home.dtype}"
    if parameter.device != home.device:
        return f"{name} is on {parameter.device}, the engine's is on {home.device}"
    return None
