"""LoRA adapters of peft: which ones a model has, which ones are active, and what each layer adds to its base weights.

A model may be wrapped by peft, or be one into which transformers has put the adapters itself (`model.add_adapter`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedModel


def base_model(model: nn.Module) -> nn.Module:
    """The model of transformers inside a peft model; any other model itself."""
    base = getattr(model, "get_base_model", None)
    return model if base is None else base()


def peft_configs(model: nn.Module) -> list["PeftConfig"]:
    """The peft configuration of every adapter of the model; an empty list where there is none."""
    return list((getattr(model, "peft_config", None) or {}).values())


def has_adapters(model: nn.Module) -> bool:
    """Whether any layer of the model has a LoRA adapter."""
    return any(".lora_" in name for name, _ in base_model(model).named_parameters())


def lora_layers(model: nn.Module) -> Iterator[tuple[str, "LoraLayer"]]:
    """Names, as in a checkpoint, and modules of the layers that have LoRA adapters."""
    for name, module in base_model(model).named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            yield name, module


def added_adapters(layer: "LoraLayer") -> list[str]:
    """The adapters that a LoRA layer adds to the output of its base: active, enabled, and not merged into the base."""
    if layer.disable_adapters:
        return []
    return [a for a in layer.active_adapters if a in layer.scaling and a not in layer.merged_adapters]


def special_adapter(layer: "LoraLayer") -> str | None:
    """What the adapter of a LoRA layer has beyond the product B @ A, as the rest of a sentence; None where nothing."""
    if variants := getattr(layer, "lora_variant", None):  # DoRA, aLoRA and others
        return f"has a {type(next(iter(variants.values()))).__name__} adapter"
    if any(getattr(layer, "lora_bias", {}).values()):
        return "has an adapter with a bias"
    return None


@contextmanager
def adapters_off(model: "PreTrainedModel | PeftModel") -> Iterator[None]:
    """Inside this context a model with LoRA adapters computes with its base weights alone."""
    if hasattr(model, "disable_adapter"):
        with model.disable_adapter():
            yield
        return
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()
