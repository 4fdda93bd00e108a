"""`raft train`: trains on the rows of a run and writes the model to the run folder."""

import logging
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raft.errors import InputError, RunFolderError
from raft.models import load_tokenizer
from raft.rows import Row
from raft.runs import Run, read_jsonl
from raft.settings import Config, Plan, load_config, save_config
from raft.train.checkpoint import last_checkpoint
from raft.train.config import RAFTConfig
from raft.train.interrupt import StopAtStepEnd
from raft.train.started import check_started, write_started
from raft.train.trainer import RAFTTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingPlan(Plan):
    """A `Plan` whose rows have the refined answers."""

    arguments: RAFTConfig


def train(plan: TrainingPlan, resume: bool = False) -> None:
    """Trains as planned. Checkpoints and records go to train/ of the run folder, the model to model/.

    The settings are written to config.yaml after they were checked against model and data. resume: continue from the
    last complete checkpoint, with the settings that the training was started with (`raft.train.started`). If there is
    no checkpoint yet, start at step 0.
    """
    config, run, rows = plan.config, plan.run, plan.rows
    args = plan.arguments
    args.output_dir = str(run.train_dir)
    checkpoint = last_checkpoint(run.train_dir) if resume else None
    if checkpoint is not None:
        check_started(run, config, rows)
    try:
        trainer = RAFTTrainer(
            model=plan.model,
            args=args,
            train_dataset=rows,
            processing_class=load_tokenizer(plan.model),
        )
    except InputError as error:  # names a row by its id alone
        raise InputError(f"{plan.data}, {error}") from error
    if trainer.is_world_process_zero():
        if checkpoint is None:
            write_started(run, config, rows)
        _save_beside_refinement(config, run)
    with StopAtStepEnd() as stop:
        trainer.add_callback(stop)
        trainer.train(resume_from_checkpoint=checkpoint)
    save(trainer, run.model_dir)


def _save_beside_refinement(config: Config, run: Run) -> None:
    """Writes config.yaml. If refinement wrote one, its section `refine` is kept, and its `data` if none is given."""
    if run.refine_dir.is_dir() and run.config_path.is_file():
        refined = load_config(run.config_path)
        config = replace(config, refine=refined.refine, data=config.data or refined.data)
    save_config(config, run.config_path)


def check_refined(run: Run, args: RAFTConfig) -> None:
    """`RunFolderError` if the training needs answers of a refinement that was stopped before its end."""
    begun, refined = run.refine_dir / "rewrite.jsonl", run.refine_dir / "fused.jsonl"
    if args.answer_target != "raw" and begun.exists() and not refined.exists():
        raise RunFolderError(
            f"{run.refine_dir}: the refinement is unfinished, so there are no {args.answer_target} answers to train "
            f"on: `raft refine --resume --run {run.path}` finishes it; train.target=raw trains on the raw answers "
            "instead"
        )


def with_refinement(rows: list[Row], data: str, run: Run, args: RAFTConfig) -> list[Row]:
    """The rows of the file `data`, with the refined answers of the run if the training uses them."""
    check_refined(run, args)
    refined = run.refine_dir / "fused.jsonl"
    if args.answer_target != "raw" and refined.exists():
        made = {line["id"]: line for line in read_jsonl(refined)}
        for row in rows:
            line = made.get(row["id"])
            if line is None or (line["question"], line["answer"]) != (row["question"], row["answer"]):
                raise InputError(f"{refined}: has no line for row {row['id']} of {data}; refine that file first")
            fields = {name: line.get(name) for name in ("fused_answer", "rewritten", "kept")}
            known: Any = {name: value for name, value in fields.items() if value is not None}
            row.update(known)
    if args.answer_target == "fused" and not any(row.get("fused_answer") for row in rows):
        logger.warning("no row has a fused answer: training on the reference answers")
    return rows


def save(trainer: RAFTTrainer, folder: Path) -> None:
    """Writes a Hugging Face checkpoint: model, tokenizer, configurations. The folder appears only when complete."""
    partial = folder.with_name(f".{folder.name}.partial")
    if trainer.is_world_process_zero():
        shutil.rmtree(partial, ignore_errors=True)  # what a kill left of an earlier one
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(partial))
    if trainer.is_world_process_zero():
        # The Trainer adds a pickle of the training arguments. The run's config.yaml has the same as text.
        (partial / "training_args.bin").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
