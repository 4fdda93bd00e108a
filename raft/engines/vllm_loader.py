"""Puts a model of this process into vLLM, by vLLM's own extension point for loaders. Imports vLLM: import it late."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from raft.engines.base import Weights
from raft.engines.weights import (
    CannotShare,
    CopiedWeights,
    OffGPU,
    SharedWeights,
    checkpoint_tensors,
    match,
    named_weights,
)
from raft.errors import EngineError

log = logging.getLogger(__name__)

LOAD_FORMAT = "raft_student"


@dataclass
class Handover:
    """One model on its way into an engine."""

    model: nn.Module
    wanted: str  # "auto" | "shared" | "copied"
    waiting: OffGPU
    weights: Weights | None = None  # how it went


_handover: Handover | None = None


@contextmanager
def handing_over(model: nn.Module, wanted: str) -> Iterator[Handover]:
    """While this is open, an `LLM(..., load_format=LOAD_FORMAT)` takes its weights from `model`.

    vLLM makes the loader itself, from a name and settings that it copies and hashes, so the model has to wait here.
    To be shared, its numbers wait off the GPU: vLLM allocates all of its storage at once, and two copies may not fit.
    """
    global _handover
    weights = named_weights(model)
    waits = wanted != "copied" and not any(hasattr(p, "full_tensor") for p in weights.values())  # no shard is shared
    _handover = Handover(model, wanted, OffGPU(weights if waits else {}))
    try:
        yield _handover
    finally:
        _handover.waiting.restore()
        _handover = None


@register_model_loader(LOAD_FORMAT)
class StudentLoader(BaseModelLoader):
    """The model moves into vLLM's storage; where it cannot, vLLM gets a copy."""

    def download_model(self, model_config: Any) -> None:
        """Nothing to download."""

    def load_weights(self, model: Any, model_config: Any) -> None:
        handover = _current()
        for module in model.modules():
            # The CPU build would repack the weight of every Linear for oneDNN and delete the original.
            module._cpu_skip_gemm_dispatch = True
        if handover.wanted != "copied":
            try:
                handover.weights = SharedWeights(handover.model, model, partial(_load, model), handover.waiting.copies)
            except CannotShare as error:
                _refuse_or_log(handover, error)
                handover.waiting.restore()
        if handover.weights is None:
            _fill(model, checkpoint_tensors(handover.model))

    def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> nn.Module:
        model = super().load_model(vllm_config, model_config, prefix)
        for module in model.modules():  # type: Any
            if hasattr(module, "cpu_linear"):
                # It also packs a copy of the head (vocab_parallel_embedding.py) and would go on computing with that.
                module.cpu_linear = torch.nn.functional.linear
        handover = _current()
        if isinstance(handover.weights, SharedWeights):
            try:
                handover.weights.check_engine()
            except CannotShare as error:
                handover.weights = None
                _refuse_or_log(handover, error)
        if handover.weights is None:
            handover.weights = _copied(handover.model, model)
        return model


def _current() -> Handover:
    assert _handover is not None, f"load_format={LOAD_FORMAT!r} is for raft's VLLMEngine"
    return _handover


def _refuse_or_log(handover: Handover, reason: CannotShare) -> None:
    if handover.wanted == "shared":
        raise reason
    log.info("vLLM gets a copy of the weights at each refresh (%s)", reason)


def _load(engine_model: Any, tensors: Mapping[str, Tensor]) -> None:
    engine_model.load_weights(iter(tensors.items()))


@torch.no_grad()
def _fill(engine_model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Loads all weights, and finds out by the numbers whether any is missing: what vLLM reports has other names at times."""
    parameters = {name: p for name, p in engine_model.named_parameters() if p.is_floating_point()}
    for parameter in parameters.values():
        parameter.fill_(torch.nan)
    _load(engine_model, tensors)
    if missing := [name for name, parameter in parameters.items() if parameter.isnan().any()]:
        raise EngineError(f"the model lacks {len(missing)} weights that vLLM needs, the first is {missing[0]}")


def _copied(model: nn.Module, engine_model: Any) -> CopiedWeights:
    load = partial(_load, engine_model)
    tensors = checkpoint_tensors(model)
    try:
        return CopiedWeights(model, match(engine_model, tensors), load)
    except CannotShare as error:
        log.debug("and loads it by its own rules (%s)", error)
    # Those rules are for the form before vLLM made the weights ready for its kernels: where that is another one, loading
    # the same numbers again changes them.
    before = {name: parameter.detach().to("cpu", copy=True) for name, parameter in engine_model.named_parameters()}
    load(tensors)
    for name, parameter in engine_model.named_parameters():
        if not torch.equal(before[name], parameter.detach().cpu()):
            raise EngineError(f"vLLM has packed {name} for its kernels, where no refresh can reach it; use engine 'hf'")
    return CopiedWeights(model, None, load)
