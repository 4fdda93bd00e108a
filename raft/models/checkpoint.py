"""The tensors of a model in memory, by the names and in the shapes that they have in a checkpoint.

In memory they can have others: FSDP2 splits tensors over the ranks, peft wraps layers and adds adapters, and
transformers stacks the experts of a layer into one tensor.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from raft.errors import EngineError
from raft.models.adapters import added_adapters, base_model, peft_configs, special_adapter

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer


@torch.no_grad()
def checkpoint_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Names and tensors as a checkpoint has them: shards gathered, active LoRA adapters merged, experts one by one.

    Under FSDP2 every rank must call this. Tensors are copied only where one of these needs it. The model is unchanged.
    Raises EngineError as `check_plain` does, and for adapters that cannot be merged.
    """
    check_plain(model)
    base: PreTrainedModel = base_model(model)
    return revert_weight_conversion(base, _merged(base))


def named_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by their names in a checkpoint: tied ones once, those of LoRA adapters not at all."""
    named = base_model(model).named_parameters()
    return {name.replace(".base_layer.", "."): p for name, p in named if ".lora_" not in name}


def check_plain(model: nn.Module) -> None:
    """Raises EngineError for weights that only the model itself can read: quantised, under ZeRO-3, or not LoRA."""
    base = base_model(model)
    if getattr(base, "is_quantized", False):
        raise EngineError(f"{type(base).__name__} is quantised, and its numbers mean nothing to vLLM; use engine 'hf'")
    if partitioned := [name for name, parameter in base.named_parameters() if hasattr(parameter, "ds_id")]:
        raise EngineError(f"{partitioned[0]} is partitioned by DeepSpeed ZeRO-3; use ZeRO-2, FSDP2 or engine 'hf'")
    kinds = {str(getattr(c.peft_type, "value", c.peft_type)) for c in peft_configs(model)}
    if others := kinds - {"LORA"}:
        raise EngineError(f"{min(others)} adapters cannot be merged into weights; use engine 'hf'")


def _merged(model: nn.Module) -> dict[str, Tensor]:
    """Base weights plus active LoRA adapters, without a change to the model, which peft's own merge would make."""
    merged: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        path, _, leaf = name.rpartition(".")
        if path.endswith(".base_layer"):
            above = path.removesuffix(".base_layer")
            layer: LoraLayer = model.get_submodule(above)
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


def _whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that FSDP2 has split over the ranks; any other tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()
