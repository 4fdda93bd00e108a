"""`raft train`: rows, model and settings of a run in, a trained checkpoint in the run's folder out."""

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
    """A `Plan` whose rows have what refinement made of them."""

    arguments: RAFTConfig


def train(plan: TrainingPlan, resume: bool = False) -> None:
    """Trains as planned: checkpoints and records go to train/ of the run, the model to model/.

    The settings go to config.yaml once they are known to fit model and data. resume: from the last whole checkpoint,
    with the settings that the training was started with (`raft.train.started`), or from the start if a kill came before
    the first one.
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
    except InputError as error:  # of a row, which is known by its id alone there
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
    """Writes the run's config.yaml; where refinement wrote one, what it says of the refined data stays."""
    if run.refine_dir.is_dir() and run.config_path.is_file():
        refined = load_config(run.config_path)
        config = replace(config, refine=refined.refine, data=config.data or refined.data)
    save_config(config, run.config_path)


def check_refined(run: Run, args: RAFTConfig) -> None:
    """Refuses a run whose refinement was stopped before its end, where its answers are to be trained on."""
    begun, refined = run.refine_dir / "rewrite.jsonl", run.refine_dir / "fused.jsonl"
    if args.answer_target != "raw" and begun.exists() and not refined.exists():
        raise RunFolderError(
            f"{run.refine_dir}: the refinement is unfinished, so there are no {args.answer_target} answers to train "
            f"on: `raft refine --resume --run {run.path}` finishes it; train.target=raw trains on the raw answers "
            "instead"
        )


def with_refinement(rows: list[Row], data: str, run: Run, args: RAFTConfig) -> list[Row]:
    """The rows of the file `data`, with what the run's refinement made of each where the training reads that."""
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
    """Writes a plain Hugging Face checkpoint: model, tokenizer, configurations. The folder appears when it is
    complete."""
    partial = folder.with_name(f".{folder.name}.partial")
    trainer.save_model(str(partial))
    if trainer.is_world_process_zero():
        # A pickle of the training arguments, which the Trainer adds; the run's config.yaml says the same, readably.
        (partial / "training_args.bin").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
