"""Puts a model of this process into vLLM, by vLLM's own extension point for loaders. Imports vLLM: import it late."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from raft.engines.base import Weights
from raft.engines.weights import CannotShare, CopiedWeights, SharedWeights, checkpoint_tensors, match
from raft.errors import EngineError

log = logging.getLogger(__name__)

LOAD_FORMAT = "raft_student"


@dataclass
class Handover:
    """One model on its way into an engine."""

    model: nn.Module
    wanted: str  # "auto" | "shared" | "copied"
    weights: Weights | None = None  # how it went


_handover: Handover | None = None


@contextmanager
def handing_over(model: nn.Module, wanted: str) -> Iterator[Handover]:
    """While this is open, an `LLM(..., load_format=LOAD_FORMAT)` takes its weights from `model`.

    vLLM makes the loader itself, from a name and settings that it copies and hashes, so the model has to wait here.
    """
    global _handover
    _handover = Handover(model, wanted)
    try:
        yield _handover
    finally:
        _handover = None


@register_model_loader(LOAD_FORMAT)
class StudentLoader(BaseModelLoader):
    """vLLM fills its storage by its own rules first; then the model moves in, or stays out and is copied from."""

    def download_model(self, model_config: Any) -> None:
        """Nothing to download."""

    def load_weights(self, model: Any, model_config: Any) -> None:
        assert _handover is not None, f"load_format={LOAD_FORMAT!r} is for raft's VLLMEngine"
        tensors = checkpoint_tensors(_handover.model)
        loaded = model.load_weights(iter(tensors.items()))
        if loaded is not None and (missing := {name for name, _ in model.named_parameters()} - set(loaded)):
            raise EngineError(f"the model lacks {len(missing)} weights that vLLM needs, the first is {min(missing)}")
        for module in model.modules():
            # The CPU build would repack the weight of every Linear for oneDNN and delete the original.
            module._cpu_skip_gemm_dispatch = True

    def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> nn.Module:
        model = super().load_model(vllm_config, model_config, prefix)
        for module in model.modules():  # type: Any
            if hasattr(module, "cpu_linear"):
                # It also packs a copy of the head (vocab_parallel_embedding.py) and would go on computing with that.
                module.cpu_linear = torch.nn.functional.linear
        assert _handover is not None
        _handover.weights = _attach(_handover, model)
        return model


def _attach(handover: Handover, engine_model: Any) -> Weights:
    tensors = checkpoint_tensors(handover.model)
    slices: Mapping[str, Tensor] | None = None
    try:
        slices = match(engine_model, tensors)
        if handover.wanted != "copied":
            return SharedWeights(handover.model, slices)
        reason = "as asked"
    except CannotShare as error:
        if handover.wanted == "shared":
            raise EngineError(f"weights='shared' is not possible: {error}") from error
        reason = str(error)
    log.info("vLLM gets a copy of the weights at each refresh (%s)", reason)

    def load(tensors: Mapping[str, Tensor]) -> None:
        engine_model.load_weights(iter(tensors.items()))

    return CopiedWeights(handover.model, slices, load)
