"""Checks of settings of transformers.TrainingArguments that transformers misapplies or refuses too late.

Too late means after the models are loaded, or in the middle of training.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from raft.errors import ConfigError
from raft.settings.check import check_fields
from raft.settings.schema import Count, CountOrZero, Decay, NotNegative, Positive, Seed

_RANGES: dict[str, object] = {
    "per_device_eval_batch_size": Count,
    "gradient_accumulation_steps": Count,
    "dataloader_num_workers": CountOrZero,
    "seed": Seed,
    "data_seed": Seed | None,
    "adam_epsilon": NotNegative,
    "adam_beta1": Decay,
    "adam_beta2": Decay,
    "max_grad_norm": NotNegative,
    # The other strategies need a dataset column of token ids. Our rows have none: the trainer renders them itself.
    "train_sampling_strategy": Literal["random", "sequential"],
}
_UNLISTED = ("azure_ml", "flyte")  # transformers does not always list these among the installed integrations
_LOW_RANK = ("galore", "apollo")  # these optimizers search the model for their target modules


def check_values(args: TrainingArguments) -> None:
    """Checks the settings as given, before transformers derives other settings from them."""
    check_fields(args, _RANGES)
    if args.max_steps == -1:
        check_fields(args, {"num_train_epochs": Positive})
    else:
        check_fields(args, {"max_steps": Count})
    for kind in ("eval", "save"):  # logging_steps is a field of RAFTConfig
        if getattr(args, f"{kind}_strategy") == "steps":
            check_fields(args, {f"{kind}_steps": NotNegative | None})


def check_parts(args: TrainingArguments) -> None:
    """Builds optimizer, schedule and loggers once as a test, so that a missing package or argument is found now."""
    if args.fp16 and args.device.type == "cpu":
        raise ConfigError("fp16: expected false on a CPU, whose mixed precision is bf16")
    if args.fsdp and args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise ConfigError(
            f"fsdp: expected none in a single process, found {args.fsdp!r}; start with torchrun or accelerate launch"
        )
    if args.save_strategy == "best":
        if args.eval_strategy == "no":
            raise ConfigError("save_strategy: expected an eval_strategy other than no beside 'best'")
        if args.metric_for_best_model is None:
            raise ConfigError("metric_for_best_model: expected eval_loss, say, beside save_strategy='best', found None")
    _check_hub(args)
    _check_reports(args)
    if args.deepspeed_plugin is None:  # DeepSpeed has its own optimizers and schedules
        _check_optimizer(args)


def _check_hub(args: TrainingArguments) -> None:
    from huggingface_hub import constants, get_token

    if not args.push_to_hub:
        return
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("push_to_hub: expected false while HF_HUB_OFFLINE is set")
    if args.hub_token is None and get_token() is None:
        raise ConfigError("push_to_hub: expected a token for the Hub, found none; set HF_TOKEN or run `hf auth login`")


def _check_reports(args: TrainingArguments) -> None:
    from transformers.integrations import get_available_reporting_integrations, get_reporting_integration_callbacks

    installed = get_available_reporting_integrations()
    for name in args.report_to or []:
        with _usable("report_to", name):
            get_reporting_integration_callbacks([name])
        if name not in (*installed, *_UNLISTED):
            found = ", ".join(["none", *installed])
            raise ConfigError(f"report_to: expected what is installed and set up here ({found}), found {name!r}")


def _check_optimizer(args: TrainingArguments) -> None:
    """Builds the optimizer and the schedule for a single parameter."""
    from transformers import Trainer
    from transformers.optimization import get_scheduler

    probe = nn.ParameterList([torch.zeros(1)])
    low_rank = args.optim.startswith(_LOW_RANK)
    with _usable("optim", str(args.optim.value)):
        try:
            kind, options = Trainer.get_optimizer_cls_and_kwargs(args, None if low_rank else probe)
        except ValueError:
            if low_rank and args.optim_target_modules:
                return  # the package is installed; the target modules can only be checked with the model
            raise
        optimizer = kind(options.pop("model", probe.parameters()), **options)
    with _usable("lr_scheduler_type", str(args.lr_scheduler_type.value)):
        get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=0,  # so that the first step already uses all the other arguments
            num_training_steps=100,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )


@contextmanager
def _usable(name: str, value: str) -> Iterator[None]:
    """Turns any exception raised within it into a `ConfigError` that names this setting."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{name}: expected one that can be used here, found {value!r}: {reason}") from error
