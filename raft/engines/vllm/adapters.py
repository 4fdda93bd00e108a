"""LoRA adapters under training, for vLLM: the base weights stay shared, and a refresh passes on the adapters alone.

vLLM reads an adapter from a folder in peft's format and keeps it for as long as its number stays the same. So every
refresh writes a new folder and counts the number up.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from raft.engines.vllm.sharing import CannotShare
from raft.errors import EngineError
from raft.models.adapters import added_adapters, base_model, lora_layers, special_adapter

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer
    from vllm.lora.request import LoRARequest

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values of max_lora_rank that vLLM takes


class ServedAdapter:
    """All active adapters of a model, joined into one adapter that vLLM can serve."""

    def __init__(self, model: nn.Module):
        """Raises CannotShare, with the reason, for adapters that vLLM cannot serve."""
        self._model = model
        self.request: LoRARequest | None = None  # for a call of vLLM; None while all adapters are off
        for name, layer in lora_layers(model):
            if reason := _reason_not_to_serve(layer):
                raise CannotShare(f"{name} {reason}")
        if whole := [n for n, _ in base_model(model).named_parameters() if ".modules_to_save." in n]:
            raise CannotShare(f"{whole[0]} is a whole module beside its original (modules_to_save)")
        rank = max((len(a) for a, _ in self._pairs().values()), default=1)
        if rank > RANKS[-1]:
            raise CannotShare(f"the adapters have rank {rank}, vLLM takes {RANKS[-1]} at most")
        self._rank = next(r for r in RANKS if r >= rank)
        self._folder = tempfile.TemporaryDirectory(prefix="raft-adapter-")
        self._count = 0

    @property
    def engine_options(self) -> dict[str, object]:
        """Arguments of `vllm.LLM` that make room for the adapter."""
        return {"enable_lora": True, "max_loras": 1, "max_lora_rank": self._rank}

    def refresh(self) -> None:
        """Writes the adapters' current weights to disk, from where the next call of vLLM reads them."""
        from vllm.lora.request import LoRARequest

        pairs = self._pairs()
        if not pairs:
            self.request = None
            return
        rank = max(len(a) for a, _ in pairs.values())
        if rank > self._rank:
            raise EngineError(f"the adapters now have rank {rank}, this engine was built for {self._rank}")
        self._count += 1
        folder = Path(self._folder.name, str(self._count))
        folder.mkdir()
        tensors = {}
        for name, (a, b) in pairs.items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = a
            tensors[f"base_model.model.{name}.lora_B.weight"] = b
        save_file(tensors, folder / "adapter_model.safetensors")
        targets = sorted({name.rpartition(".")[2] for name in pairs})
        settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets, "bias": "none"}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        shutil.rmtree(Path(self._folder.name, str(self._count - 1)), ignore_errors=True)
        self.request = LoRARequest(f"student-{self._count}", self._count, str(folder))

    def close(self) -> None:
        """Deletes what was written."""
        self._folder.cleanup()

    @torch.no_grad()
    def _pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Layer -> A [rank, in] and B [out, rank]; B @ A is the sum of its active adapters, with their scales in B."""
        pairs = {}
        for name, layer in lora_layers(self._model):
            if active := added_adapters(layer):
                downs = [layer.lora_A[a].weight.detach() for a in active]
                ups = [layer.lora_B[a].weight.detach() * layer.scaling[a] for a in active]
                pairs[name] = torch.cat(downs).contiguous(), torch.cat(ups, dim=1).contiguous()
        return pairs


def _reason_not_to_serve(layer: "LoraLayer") -> str | None:
    if not isinstance(layer.base_layer, nn.Linear):
        return f"is a {type(layer.base_layer).__name__} with an adapter, vLLM takes them on linear layers"
    return special_adapter(layer)
