"""A copy of the weights for vLLM, overwritten in place at each refresh: where the weights cannot be shared.

That is so for FSDP2, for merged LoRA adapters, and where vLLM stores weights in another form than the model.
"""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from raft.engines.vllm.sharing import CannotShare, Load, match
from raft.errors import EngineError
from raft.models.checkpoint import checkpoint_tensors

log = logging.getLogger(__name__)


class CopiedWeights:
    """The engine has its own copy of the weights. A refresh overwrites it in place."""

    mode = "copied"

    def __init__(self, model: nn.Module, slices: Mapping[str, Tensor] | None, load: Load):
        """slices: rows of the engine as `match` gives them; None: a refresh is a `load` (transposed layers, MoE)."""
        self._model = model
        self._slices = slices
        self._load = load

    @torch.no_grad()
    def refresh(self) -> None:
        """Copies the model's current weights. Under FSDP2 every rank must call this."""
        tensors = checkpoint_tensors(self._model)
        if self._slices is None:
            self._load(tensors)
        else:  # one call for all: parameter by parameter takes some twenty times as long on a small model
            torch._foreach_copy_(list(self._slices.values()), [tensors[name] for name in self._slices])


@torch.no_grad()
def fill(engine_model: nn.Module, tensors: Mapping[str, Tensor], load: Load) -> None:
    """Loads `tensors` into a new engine; EngineError where a parameter of the engine gets no numbers.

    What vLLM's own loading reports has other names at times, so each parameter is NaN before and must not be after.
    """
    parameters = {name: p for name, p in engine_model.named_parameters() if p.is_floating_point()}
    for parameter in parameters.values():
        parameter.fill_(torch.nan)
    load(tensors)
    if missing := [name for name, parameter in parameters.items() if parameter.isnan().any()]:
        raise EngineError(f"the model lacks {len(missing)} weights that vLLM needs, the first is {missing[0]}")


def copied(model: nn.Module, engine_model: nn.Module, load: Load) -> CopiedWeights:
    """The copy that the engine has loaded already. EngineError where no refresh can overwrite it."""
    tensors = checkpoint_tensors(model)
    try:
        return CopiedWeights(model, match(engine_model, tensors), load)
    except CannotShare as error:
        log.debug("and loads it by its own rules (%s)", error)
    # vLLM's `load_weights` writes into parameters as they are before process_weights_after_loading, which may repack
    # them for its kernels. To load the same numbers once more changes repacked parameters, and no others.
    before = {name: parameter.detach().to("cpu", copy=True) for name, parameter in engine_model.named_parameters()}
    load(tensors)
    for name, parameter in engine_model.named_parameters():
        if not torch.equal(before[name], parameter.detach().cpu()):
            raise EngineError(f"vLLM has packed {name} for its kernels, where no refresh can reach it; use engine 'hf'")
    return CopiedWeights(model, None, load)
