"""FAPM: supervised fine-tuning; then most entries of each weight are reset to the base model (`raft.merging.fapm`)."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from raft.errors import ConfigError
from raft.merging.fapm import FAPMMerge, kept_entries, pruned
from raft.methods.base import Method
from raft.models.adapters import peft_configs
from raft.models.load import weight_files

if TYPE_CHECKING:
    from raft.train.config import RAFTConfig

logger = logging.getLogger(__name__)


class FAPM(Method):
    """Cross-entropy on the reference answers, then forgetting-aware pruning of the task vector.

    Whole weights are pruned in place, against a copy of the untrained weights in CPU memory. If FSDP or DeepSpeed has
    split them, the saved model is pruned on disk against the checkpoint that training started from.
    """

    name = "fapm"
    citation = (
        "Huang, Cheng, Wang, Mitigating Catastrophic Forgetting in Large Language Models with Forgetting-aware "
        "Pruning, EMNLP 2025, arXiv 2509.08255"
    )
    target = "raw"

    def __init__(self, args: "RAFTConfig"):
        super().__init__(args)
        self._before: dict[str, Tensor] = {}
        self._base: Path | None = None

    def begin(self, model: nn.Module, *, sharded: bool) -> None:
        check_whole(model)
        if sharded:
            self._base = Path(getattr(model.config, "_name_or_path", ""))
            self._check_saves(self._base)
        else:
            self._before = snapshot(model)

    def _check_saves(self, base: Path) -> None:
        """ConfigError where a saved model could not be pruned against `base`, or would be uploaded before it is."""
        beside = 'method: "fapm" beside FSDP or DeepSpeed'
        if not (base / "config.json").is_file():
            raise ConfigError(
                f"{beside} prunes against the checkpoint that training starts from, expected a model that was loaded "
                f"from a folder, found {str(base)!r}"
            )
        weight_files(base)
        if self.args.push_to_hub:
            raise ConfigError(f"{beside} prunes the saved model, expected push_to_hub false: it would upload another")
        state = str((self.args.fsdp_config or {}).get("state_dict_type", ""))
        if "SHARDED" in state.upper():
            raise ConfigError(
                f"{beside} prunes the saved model, expected state_dict_type FULL_STATE_DICT, found {state}"
            )

    def finish(self, model: nn.Module) -> None:
        if self._before:
            prune_task_vector(model, self._before, self.args.fapm_sparsity)

    @property
    def finishes_on_disk(self) -> bool:
        return self._base is not None

    def finish_saved(self, folder: Path) -> None:
        from raft.merging import merge_in_place

        assert self._base is not None
        merge_in_place(FAPMMerge(sparsity=self.args.fapm_sparsity), self._base, folder)


def check_whole(model: nn.Module) -> None:
    """ConfigError for models whose parameters are not whole weights."""
    if peft_configs(model):
        raise ConfigError('method: "fapm" prunes the change of whole weights, expected a model without LoRA adapters')
    if any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
        raise ConfigError(
            'method: "fapm" ranks the entries of whole weights, expected none split by tensor parallelism'
        )


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the trainable parameters, by name, in CPU memory and in their own dtype. Tied ones appear once."""
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@torch.no_grad()
def prune_task_vector(model: nn.Module, base: Mapping[str, Tensor], sparsity: float = 0.9) -> None:
    """Resets each parameter's entries to `base`, except the share 1 - sparsity with the highest scores.

    In place, because an engine may share the storage. It needs about 16 bytes of additional memory per entry of the
    largest parameter, on that parameter's device.
    """
    kept = total = 0
    for name, parameter in model.named_parameters():
        if name in base:
            parameter.copy_(pruned(parameter, base[name].to(parameter.device), sparsity))
            kept, total = kept + kept_entries(parameter.numel(), sparsity), total + parameter.numel()
    logger.info("task vector pruned: %d of %d entries keep their change", kept, total)
