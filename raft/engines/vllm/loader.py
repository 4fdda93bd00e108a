"""vLLM's loader for a model of this process, registered by vLLM's public `register_model_loader`.

It imports vLLM at module level, which takes seconds, so it must itself be imported only when an engine starts.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from raft.engines.base import Weights
from raft.engines.vllm.copying import copied, fill
from raft.engines.vllm.sharing import CannotShare, Load, OffGPU, SharedWeights
from raft.models.checkpoint import checkpoint_tensors, named_weights

log = logging.getLogger(__name__)

LOAD_FORMAT = "raft_student"


@dataclass
class Handover:
    """A model whose weights an engine that starts is to use."""

    model: nn.Module
    wanted: str  # "auto" | "shared" | "copied"
    off_gpu: OffGPU
    weights: Weights | None = None  # how the engine sees the weights, once they are loaded


_handover: Handover | None = None


@contextmanager
def handing_over(model: nn.Module, wanted: str) -> Iterator[Handover]:
    """Inside this context an `LLM(..., load_format=LOAD_FORMAT)` takes its weights from `model`.

    vLLM constructs the loader itself, from a name and from settings that it copies and hashes, so the model cannot be
    an argument and is kept in this module. If it is to be shared, its numbers are in CPU memory meanwhile: vLLM
    allocates all of its storage at once, and the GPU may not have room for the weights twice.
    """
    global _handover
    weights = named_weights(model)
    is_sharded = any(hasattr(p, "full_tensor") for p in weights.values())  # such weights are never shared
    _handover = Handover(model, wanted, OffGPU({} if wanted == "copied" or is_sharded else weights))
    try:
        yield _handover
    finally:
        _handover.off_gpu.restore()
        _handover = None


@register_model_loader(LOAD_FORMAT)
class StudentLoader(BaseModelLoader):
    """Makes the model's parameters views of vLLM's storage; where that is not possible, vLLM gets a copy."""

    def download_model(self, model_config: ModelConfig) -> None:
        """Nothing to download."""

    def load_weights(self, model: Any, model_config: ModelConfig) -> None:
        handover, load = _current(), _loading(model)
        for module in model.modules():
            # The CPU build would repack the weight of every Linear for oneDNN and delete the original.
            module._cpu_skip_gemm_dispatch = True
        if handover.wanted != "copied":
            try:
                handover.weights = SharedWeights(handover.model, model, load, handover.off_gpu.copies)
            except CannotShare as error:
                _refuse_or_log(handover, error)
                handover.off_gpu.restore()
        if handover.weights is None:
            fill(model, checkpoint_tensors(handover.model), load)

    def load_model(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = "") -> nn.Module:
        model = super().load_model(vllm_config, model_config, prefix)
        for module in model.modules():
            if hasattr(module, "cpu_linear"):
                # For the head it packs a copy (vocab_parallel_embedding.py), which no training would change.
                module.cpu_linear = torch.nn.functional.linear
        handover = _current()
        if isinstance(handover.weights, SharedWeights):
            try:
                handover.weights.check_engine()
            except CannotShare as error:
                handover.weights = None
                _refuse_or_log(handover, error)
        if handover.weights is None:
            handover.weights = copied(handover.model, model, _loading(model))
        return model


def _loading(engine_model: Any) -> Load:
    """vLLM's own loading, which knows how the model's weights are stored in the engine's."""
    return lambda tensors: engine_model.load_weights(iter(tensors.items()))


def _current() -> Handover:
    assert _handover is not None, f"load_format={LOAD_FORMAT!r} is for raft's VLLMEngine"
    return _handover


def _refuse_or_log(handover: Handover, reason: CannotShare) -> None:
    if handover.wanted == "shared":
        raise reason
    log.info("vLLM gets a copy of the weights at each refresh (%s)", reason)
