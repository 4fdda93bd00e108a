"""Prepares the trainer's inputs before training: checks settings, fits lengths to the model, reads and renders rows."""

import os
from collections.abc import Collection, Iterable, Mapping, Sized
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raft.engines import context_length, eos_ids
from raft.errors import ConfigError
from raft.models import load_model, load_tokenizer
from raft.models.language_model import LanguageModel, check_architecture
from raft.rows import Row, normalize_rows, read_rows
from raft.train.batching import check_budget
from raft.train.config import RAFTConfig
from raft.train.data import Example, Notes, render
from raft.train.saving import check_saves
from raft.train.targets import targets

Rows = Iterable[Mapping[str, object]] | str | os.PathLike[str]
"""Rows in a form of `raft.rows`: in memory, or the file or folder that holds them."""
Evaluated = Rows | Mapping[str, Rows]
"""Rows for eval_loss, or several named sets of them."""
UNSUPPORTED = ("data_collator", "compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics", "model_init")


def check_settings(args: RAFTConfig, trainer_kwargs: Mapping[str, object]) -> None:
    if not isinstance(args, RAFTConfig):
        raise ConfigError(f"args: expected a RAFTConfig, found {type(args).__name__}")
    if args.use_liger_kernel and args.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigError("use_liger_kernel: expected false on a CPU, Liger's kernels need a GPU")
    for name in UNSUPPORTED:
        if trainer_kwargs.get(name) is not None:
            raise ConfigError(f"{name}: not supported, this trainer renders its rows and computes its losses itself")


def check_data(args: RAFTConfig, rows: Sized | None, eval_dataset: object) -> None:
    """ConfigError if the settings need rows that are not there."""
    if eval_dataset is None and (args.eval_strategy != "no" or args.eval_on_start):
        asked = "eval_on_start" if args.eval_on_start else f"eval_strategy={args.eval_strategy.value!r}"
        raise ConfigError(f"eval_dataset: expected rows to evaluate on beside {asked}, found none")
    if rows is not None and args.dataloader_drop_last:
        batch = args.train_batch_size * (1 if args.accelerator_config.split_batches else args.world_size)
        if len(rows) < batch:
            raise ConfigError(
                f"dataloader_drop_last: expected false, or at least the {batch} rows of a batch, found {len(rows)} rows"
            )


def fit(args: RAFTConfig, student: LanguageModel) -> None:
    """Limits the lengths in `args` to the model's positions; ConfigError for settings that its shape does not allow."""
    config = student.inner.config.get_text_config()
    args.max_length = context_length(config, args.max_length)
    if args.teacher_max_length is not None:
        args.teacher_max_length = context_length(config, args.teacher_max_length)
    if not args.preset.distills:
        return
    if args.top_k > student.vocabulary:
        raise ConfigError(f"top_k: expected at most {student.vocabulary}, the model's vocabulary, found {args.top_k}")
    shortest = min(args.max_length, args.teacher_length)
    if args.rollout_max_tokens >= shortest:
        raise ConfigError(
            f"rollout_max_tokens: expected less than the model's {shortest} positions, found {args.rollout_max_tokens}"
        )


@dataclass(frozen=True)
class Prepared:
    """Inputs of the trainer, checked and rendered."""

    student: LanguageModel
    tokenizer: PreTrainedTokenizerBase
    ends: tuple[int, ...]  # ids of tokens that end a text
    vocabulary: int
    targets: str  # which answers are trained on, for the log
    examples: list[Example] | None
    notes: Notes | None  # how rendering changed the rows
    evaluated: list[Example] | dict[str, list[Example]] | None


def prepare(
    model: str | os.PathLike[str] | nn.Module,
    args: RAFTConfig,
    train_dataset: Rows | None,
    eval_dataset: Evaluated | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Prepared:
    """Reads the rows, loads the model if it is given as a path, and renders the rows for it.

    InputError, ConfigError or ModelError if rows, settings and model do not fit together. Cheap checks come first.
    """
    rows = None if train_dataset is None else rows_from(train_dataset, "train_dataset")
    check_data(args, rows, eval_dataset)
    if isinstance(model, (str, os.PathLike)):
        tokenizer = tokenizer or load_tokenizer(model)
        check_architecture(model)
        loaded: PreTrainedModel = load_model(model, dtype=getattr(torch, args.param_dtype))
    else:
        loaded = model
        tokenizer = tokenizer or load_tokenizer(loaded.config._name_or_path)
    student = LanguageModel(loaded)
    student.check()
    check_saves(loaded, tokenizer)
    fit(args, student)
    ends = eos_ids(student.inner, tokenizer)
    examples, notes = None, None
    if rows is not None:
        examples, notes = render(rows, tokenizer, args, ends, vocabulary=student.vocabulary)
    drawn = args.rollouts_per_prompt if args.preset.distills else 0
    check_budget(args.max_tokens_per_micro_batch, examples or [], drawn, args.rollout_max_tokens)
    evaluated = render_evaluation(eval_dataset, tokenizer, args, ends, student.vocabulary)
    return Prepared(student, tokenizer, ends, student.vocabulary, targets(rows or [], args), examples, notes, evaluated)


def rows_from(dataset: Rows, name: str) -> list[Row]:
    """Rows of a file or folder, or in memory. name: how errors refer to rows in memory."""
    if isinstance(dataset, (str, os.PathLike)):
        return read_rows(os.fspath(dataset))
    return normalize_rows(dataset, source=name)


def render_evaluation(
    dataset: Evaluated | None,
    tokenizer: PreTrainedTokenizerBase,
    args: RAFTConfig,
    ends: Collection[int],
    vocabulary: int | None = None,
) -> list[Example] | dict[str, list[Example]] | None:
    """Renders rows for eval_loss, or several named sets of them."""

    def rendered(rows: Rows) -> list[Example]:
        found = rows_from(rows, "eval_dataset")
        return render(found, tokenizer, args, ends, rollouts=False, vocabulary=vocabulary)[0]

    if dataset is None:
        return None
    if isinstance(dataset, Mapping):
        return {name: rendered(rows) for name, rows in dataset.items()}
    return rendered(dataset)
