"""How an engine sees the weights of the model under training: shared with it, copied from it, or read from disk.

vLLM fuses q/k/v and gate/up projections into one tensor each, rows under rows, and pads the vocabulary at its end. So
every weight of a Hugging Face model is a block of whole rows of one of vLLM's tensors, and such a block is contiguous:
the model's parameter can simply BE that block. Training then writes where generation reads; nothing is synchronised.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

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

    def __init__(
        self,
        model: nn.Module,
        engine_model: nn.Module,
        load: Callable[[Mapping[str, Tensor]], None],
        copies: Mapping[str, Tensor] | None = None,
    ):
        """Moves every parameter of `model` into the rows of `engine_model` that are its own, or raises CannotShare.

        The engine's `load` fills its storage by the engine's own rules, one of its parameters at a time, and the model
        gives up its memory of each before the next is filled. A row counts only if it then holds the same numbers, so
        no order or form of rows that `load` makes up can pass for another. `copies`: of parameters that have given up
        their memory already (`OffGPU`).
        """
        copies = copies or {}
        self._model, self._engine_model = model, engine_model
        parameters = named_weights(model)
        if sharded := [name for name, parameter in parameters.items() if hasattr(parameter, "full_tensor")]:
            raise CannotShare(f"{sharded[0]} is sharded")
        if buffers := _saved_buffers(model):
            raise CannotShare(f"{min(buffers)} is a buffer")
        slices = rows_of(engine_model, parameters)
        for name, rows in slices.items():
            if parameters[name].dtype != rows.dtype:
                raise CannotShare(f"{name} is {parameters[name].dtype}, the engine's is {rows.dtype}")
        moved: list[nn.Parameter] = []
        try:
            for names in _by_storage(slices):
                numbers = {name: copies.get(name, parameters[name].detach()) for name in names}
                load(numbers)
                _compare({name: slices[name] for name in names}, numbers)
                for name in names:
                    parameters[name].data = slices[name]
                    moved.append(parameters[name])
        except BaseException:
            _move_out(moved)
            raise
        self._homes = {name: parameter.data_ptr() for name, parameter in parameters.items()}
        self._adapted = has_adapters(model)
        self._engine_homes = _addresses(engine_model)

    def check_engine(self) -> None:
        """Raises CannotShare, the model with a copy of its own, if the engine has replaced its storage since."""
        now = _addresses(self._engine_model)
        if changed := [name for name, address in self._engine_homes.items() if now.get(name) != address]:
            _move_out(named_weights(self._model).values())
            raise CannotShare(f"the engine has repacked {changed[0]}")

    def refresh(self) -> None:
        """Raises EngineError where a parameter got another storage, for the engine would go on with the old numbers."""
        now = {name: parameter.data_ptr() for name, parameter in named_weights(self._model).items()}
        if moved := [name for name, address in now.items() if address != self._homes.get(name)]:
            raise EngineError(
                f"{len(moved)} of {len(self._homes)} parameters no longer live in the engine's storage, the first is "
                f"{moved[0]!r}: something replaced them (param.data = ..., model.to(...), FSDP, DeepSpeed); "
                "build the engine after that, or with weights='copied'"
            )
        if not self._adapted and has_adapters(self._model):
            raise EngineError(
                "the model got LoRA adapters after this engine was built, which it does not see; build it anew"
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
    """Names and tensors as a checkpoint has them: shards gathered, LoRA adapters merged, experts one by one; no copy
    without need."""
    check_plain(model)
    base: Any = base_model(model)
    return revert_weight_conversion(base, _merged(base))


def check_plain(model: nn.Module) -> None:
    """Refuses, by EngineError, weights that no other engine can make sense of."""
    base = base_model(model)
    if getattr(base, "is_quantized", False):
        raise EngineError(f"{type(base).__name__} is quantised, and its numbers mean nothing to vLLM; use engine 'hf'")
    if partitioned := [name for name, parameter in base.named_parameters() if hasattr(parameter, "ds_id")]:
        raise EngineError(f"{partitioned[0]} is partitioned by DeepSpeed ZeRO-3; use ZeRO-2, FSDP2 or engine 'hf'")
    kinds = {str(getattr(c.peft_type, "value", c.peft_type)) for c in peft_configs(model)}
    if others := kinds - {"LORA"}:
        raise EngineError(f"{min(others)} adapters cannot be merged into weights; use engine 'hf'")


def peft_configs(model: nn.Module) -> list[Any]:
    """Of a peft model, or of adapters that transformers has put into the model itself."""
    configs: Any = getattr(model, "peft_config", None) or {}
    return list(configs.values())


class OffGPU:
    """Parameters whose GPU memory is free until `restore`, or until they get another; `copies` has their numbers.

    They stay GPU parameters of their dtype: one that changed either would lose the hooks by which DDP reduces gradients.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], device_type: str = "cuda"):
        self.copies: dict[str, Tensor] = {}
        self._parameters = dict(parameters)
        users = Counter(parameter.untyped_storage().data_ptr() for parameter in parameters.values())
        for name, parameter in parameters.items():
            storage = parameter.untyped_storage()
            # Others may live in the storage too: parameters, or, where it is larger, another engine.
            own = users[storage.data_ptr()] == 1 and storage.nbytes() == parameter.nbytes
            if own and parameter.device.type == device_type:
                self.copies[name] = parameter.detach().to("cpu", copy=True)
                storage.resize_(0)

    def restore(self) -> None:
        """Gives memory and numbers back to those that have none."""
        for name, copy in self.copies.items():
            parameter = self._parameters[name]
            if not parameter.untyped_storage().nbytes():
                parameter.untyped_storage().resize_(copy.nbytes)
                parameter.data.copy_(copy)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()  # the first: a shard of FSDP2


def _merged(model: nn.Module) -> dict[str, Tensor]:
    """Weights plus active LoRA adapters; the model itself stays as it is, which peft's own merge would change."""
    merged: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        path, _, leaf = name.rpartition(".")
        if path.endswith(".base_layer"):
            above = path.removesuffix(".base_layer")
            layer: Any = model.get_submodule(above)
            if above.endswith(".base_layer") or getattr(layer, "parameter_name", "weight") != "weight":
                raise EngineError(
                    f"the adapter of {name} is not on a layer's weight, and not merged here; use engine 'hf'"
                )
            if special_adapter(layer):
                raise EngineError(
                    f"the adapter of {path} has DoRA or a bias, which is not merged here; use engine 'hf'"
                )
            whole = _whole(tensor)
            for adapter in added_adapters(layer) if leaf == "weight" else ():
                whole = whole + layer.get_delta_weight(adapter).to(whole.dtype)
            merged[name.replace(".base_layer.", ".")] = whole
        elif ".modules_to_save." in name or ".original_module." in name:
            raise EngineError(f"LoRA with modules_to_save ({name}) is not supported by this engine; use engine 'hf'")
        elif ".lora_" not in name:
            merged[name] = _whole(tensor)
    return merged


def added_adapters(layer: Any) -> list[str]:
    """Adapters of a LoRA layer that it adds to its base: switched on, and not merged into the base already."""
    if layer.disable_adapters:
        return []
    return [a for a in layer.active_adapters if a in layer.scaling and a not in layer.merged_adapters]


def special_adapter(layer: Any) -> str | None:
    """What a LoRA layer has beside B @ A, if anything."""
    if variants := getattr(layer, "lora_variant", None):  # DoRA, aLoRA and others
        return f"has a {type(next(iter(variants.values()))).__name__} adapter"
    if any(getattr(layer, "lora_bias", {}).values()):
        return "has an adapter with a bias"
    return None


def named_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by their names in a checkpoint: tied ones once, those of LoRA adapters not at all."""
    named = base_model(model).named_parameters()
    return {name.replace(".base_layer.", "."): p for name, p in named if ".lora_" not in name}


def has_adapters(model: nn.Module) -> bool:
    return any(".lora_" in name for name, _ in base_model(model).named_parameters())


def base_model(model: nn.Module) -> nn.Module:
    """The model of transformers inside a peft model; any other model itself."""
    base: Any = getattr(model, "get_base_model", None)
    return model if base is None else base()


def _saved_buffers(model: nn.Module) -> set[str]:
    base = base_model(model)
    return base.state_dict(keep_vars=True).keys() - dict(base.named_parameters(remove_duplicate=False)).keys()


def rows_of(engine_model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The rows of the engine's parameters that are for each of `tensors`, as views: name -> [rows, ...].

    By name and shape alone; whoever uses them compares the numbers. Raises CannotShare.
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
            row += ours.shape[0]
        if row != theirs.shape[0] and not hasattr(_module_of(engine_model, name), "num_embeddings_padded"):
            raise CannotShare(f"the engine's {name} has {theirs.shape[0] - row} rows more than the model gives")
    # A tied head is there under two names with one storage.
    placed = {tensors[name].data_ptr() for name in slices} - {0}  # 0: its memory was given up
    if missing := [name for name, t in tensors.items() if name not in slices and t.data_ptr() not in placed]:
        raise CannotShare(f"the engine has no parameter for {missing[0]}")
    return slices


def match(engine_model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`rows_of`, where the engine has loaded `tensors` by its own means before and holds the same numbers."""
    slices = rows_of(engine_model, tensors)
    _compare(slices, tensors)
    return slices


def _compare(slices: Mapping[str, Tensor], numbers: Mapping[str, Tensor]) -> None:
    for name, rows in slices.items():
        if not torch.equal(rows, numbers[name].to(rows)):
            raise CannotShare(f"the engine keeps {name} in another form")


def _move_out(parameters: Iterable[nn.Parameter]) -> None:
    """Gives each a storage of its own."""
    for parameter in parameters:
        parameter.data = parameter.data.clone()


def _by_storage(slices: Mapping[str, Tensor]) -> list[list[str]]:
    """Names grouped by the engine's parameter that they are rows of."""
    groups: dict[int, list[str]] = {}
    for name, rows in slices.items():
        groups.setdefault(rows.untyped_storage().data_ptr(), []).append(name)
    return list(groups.values())


def _addresses(model: nn.Module) -> dict[str, int]:
    return {name: parameter.data_ptr() for name, parameter in model.named_parameters()}


def _module_of(model: nn.Module, parameter_name: str) -> nn.Module:
    return model.get_submodule(parameter_name.rpartition(".")[0])
