"""Special cases of training with FSDP or DeepSpeed, which split the weights over several processes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import nn
from transformers import Trainer

from raft.errors import ConfigError
from raft.train.config import RAFTConfig


def check_parallel(trainer: Trainer, model: nn.Module) -> None:
    """ConfigError for settings that FSDP or DeepSpeed does not support. The launcher may have enabled either."""
    args: RAFTConfig = trainer.args
    if trainer.is_deepspeed_enabled:
        args.check_deepspeed()
    if trainer.is_fsdp_enabled:
        check_fsdp(args, model)


def check_fsdp(args: RAFTConfig, model: nn.Module) -> None:
    """ConfigError if rounding would lose updates of bf16 weights: FSDP has fp32 weights only in mixed precision."""
    if not (args.bf16 or args.fp16) and any(p.dtype == torch.bfloat16 for p in model.parameters() if p.requires_grad):
        raise ConfigError(
            "bf16: expected true beside FSDP and bf16 parameters, which have no fp32 master weights otherwise"
        )


@contextmanager
def reduction_held(accelerator: Accelerator, model: nn.Module, *, held: bool) -> Iterator[None]:
    """With `held`, backward passes within it accumulate gradients on this rank and are not reduced over the ranks.

    It acts only in the last micro-batch of a step. In earlier ones the Trainer has already turned the reduction off,
    and leaving a second `no_sync` block would turn it on again under FSDP2.
    """
    if held and accelerator.sync_gradients:
        with accelerator.no_sync(model):
            yield
    else:
        yield
