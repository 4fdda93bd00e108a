"""What differs where the weights are split over several processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from raft.errors import ConfigError
from raft.train.config import RAFTConfig


def check_parallel(trainer: Trainer, model: nn.Module) -> None:
    """Refuses settings that do not go with FSDP or DeepSpeed, which may also come from the launcher."""
    args: Any = trainer.args
    if trainer.is_deepspeed_enabled:
        args.check_deepspeed()
    if trainer.is_fsdp_enabled:
        check_fsdp(args, model)


def check_fsdp(args: RAFTConfig, model: nn.Module) -> None:
    """Whether updates of bf16 weights would round away: FSDP keeps full precision only where it casts down itself."""
    if not (args.bf16 or args.fp16) and any(p.dtype == torch.bfloat16 for p in model.parameters() if p.requires_grad):
        raise ConfigError(
            "bf16: expected true beside FSDP and bf16 parameters, which have no fp32 master weights otherwise"
        )


@contextmanager
def reduction_held(accelerator: Any, model: nn.Module, *, held: bool) -> Iterator[None]:
    """Within it a backward pass adds up gradients on this rank alone, where `held` and the step is the one that reduces.

    In the earlier micro-batches of a step the Trainer holds the reduction back itself, and FSDP2 forgets that setting
    when another such block ends.
    """
    if held and accelerator.sync_gradients:
        with accelerator.no_sync(model):
            yield
    else:
        yield
