"""RAFTTrainer: transformers.Trainer with rollouts and a teacher before each step, and a balanced pair of losses in it.

`get_batch_samples` sees all micro-batches of an optimizer step before its first forward: there rollouts are drawn and the
teacher scores them. `compute_loss` does the one packed forward. Optimizer, schedule, accumulation, checkpoints,
callbacks, loggers and distribution stay those of transformers.
"""

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.liger import apply_liger_kernel

from raft.engines import Engine
from raft.models.language_model import inside_forward
from raft.models.packing import move
from raft.train.batching import Unit, units
from raft.train.callbacks import StepCallback
from raft.train.checkpoint import list_files
from raft.train.config import RAFTConfig
from raft.train.data import Example, digest
from raft.train.describe import describe
from raft.train.evaluation import EvaluatingTrainer
from raft.train.gap import gap_in
from raft.train.generation import Generation
from raft.train.inputs import check_settings, prepare
from raft.train.losses import Batch, Losses, losses, student_batch
from raft.train.master import keep_masters
from raft.train.noise import without_bars
from raft.train.parallel import check_parallel, reduction_held
from raft.train.progress import show_progress
from raft.train.recorder import Recorder
from raft.train.rollout import RolloutQueue
from raft.train.scoring import Scoring
from raft.train.state import ResumableState
from raft.train.step import Step, make_balance, split_packs, token_ids
from raft.train.teacher import make_teacher

logger = logging.getLogger(__name__)


class RAFTTrainer(EvaluatingTrainer):
    """Trains a causal language model by one of the methods of `raft.methods`.

    model: a path or name, or a model of transformers, plain or with LoRA adapters.
    train_dataset, eval_dataset: rows as `raft.rows` takes them, in memory or in a file; eval_loss is the cross-entropy
    of the answers, a mean over batches as in transformers.
    engine: an object of the Engine protocol that follows this model's weights; it is used and not closed. None: one is
    built when the training begins.
    teacher: a path or a model. None: the model as it is now (under LoRA: with its adapters off).
    Further arguments go to transformers.Trainer.
    """

    args: RAFTConfig

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module,
        args: RAFTConfig,
        train_dataset: Iterable[Mapping[str, Any]] | str | os.PathLike[str] | None = None,
        processing_class: Any = None,
        engine: Engine | None = None,
        teacher: str | nn.Module | None = None,
        eval_dataset: Any = None,
        **trainer_kwargs: Any,
    ):
        check_settings(args, trainer_kwargs)
        self.prepared = prepared = prepare(model, args, train_dataset, eval_dataset, processing_class)
        self.student = prepared.student
        super().__init__(
            model=self.student.model,
            args=args,
            data_collator=list,
            train_dataset=prepared.examples,
            eval_dataset=prepared.evaluated,
            processing_class=prepared.tokenizer,
            **trainer_kwargs,
        )
        # The losses are divided by the whole accumulated batch below; the Trainer must not divide once more.
        self.model_accepts_loss_kwargs = True
        if isinstance(model, (str, os.PathLike)):
            self.student.use_flash_attention()
        check_parallel(self, self.student.model)
        self.method = args.preset(args)
        # Before any training: a resumed run loads its checkpoint later, in `train`.
        self.method.begin(self.student.model, sharded=self.is_fsdp_enabled or self.is_deepspeed_enabled)
        self.teacher = make_teacher(args, self.student, teacher, prepared.tokenizer)
        self.balance = make_balance(args)
        self.queue = RolloutQueue(args)
        self.recorder = Recorder(args, self.student)
        self.generation = Generation(args, engine, self.recorder)
        self.scoring = Scoring(args, self.student, self.teacher, self.recorder, self.accelerator)
        rendered = digest(prepared.examples or [])
        self._state = ResumableState(args, self.balance, self.queue, self.recorder, rendered)
        self._step: Step
        self.add_callback(StepCallback(self))
        self._progress = show_progress(self)

    @property
    def engine(self) -> Engine | None:
        return self.generation.engine

    # ---- a step ----

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[Example]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor | None]:
        """Rows of one optimizer step -> rollouts -> teacher -> packed micro-batches, and the answer tokens over all
        ranks."""
        self.recorder.clock.begin_step()
        step, left = self.state.global_step, self.state.max_steps - self.state.global_step
        self.generation.was_called = False
        micros = self.queue.take(epoch_iterator, num_batches, step, left, self.generation.generate)
        if not micros:
            return [], None
        self.recorder.taken(micros)
        share = self.student.shares_prompts
        rows = [units(micro, self.args.mask_truncated, share) for micro in micros]
        scored = [s for units_of_micro in rows for row in units_of_micro for s in row.scored]
        self.scoring.score(scored, self.queue, self.model_wrapped)
        self.scoring.compare(scored if self.generation.was_called else [], self.model_wrapped)
        groups = split_packs(rows, self.args.max_tokens_per_micro_batch, self.accelerator)
        packs = [[student_batch(chosen, share=share).to(device) for chosen in of_micro] for of_micro in groups]
        batches = [batch for of_micro in packs for batch in of_micro]
        for batch in batches:
            for s in batch.scored:
                s.teacher = None  # the batch has it now, and goes with its step
        counts = [sum(len(b.sft_labels) for b in batches), sum(len(b.scored) for b in batches)]
        tokens, rollouts = self._sum(move(torch.tensor(counts), device)).unbind()
        self._step = Step(self.args, self.balance, self._sum, rollouts, step + 1)
        # The Trainer counts the tokens of "input_ids".
        return [{"input_ids": token_ids(of_micro, device), "packs": of_micro} for of_micro in packs], tokens

    def _sum(self, value: Tensor) -> Tensor:
        """Over all ranks."""
        return self.accelerator.reduce(value, "sum")

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        packs: list[Batch] = inputs["packs"]
        total = torch.zeros((), device=self.args.device)
        # Around the backward pass too: gradient checkpointing runs the attention again there.
        with self.recorder.clock.part("forward_backward"), self.student.attention():
            for batch in packs:
                last = batch is packs[-1]
                with reduction_held(self.accelerator, model, held=not last):
                    inputs_of_pack = {"batch": batch, "last": last and self.accelerator.sync_gradients}
                    total += super().training_step(model, inputs_of_pack, num_items_in_batch)
        packs.clear()  # the Trainer holds the inputs until the next step's are there
        return total

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """L_SFT + lambda * L_KL of one pack, as its share of the means over the whole accumulated batch.

        Scaled by the number of ranks, because their gradients are averaged.
        """
        batch: Batch = inputs["batch"]
        step = self._step
        found = self._losses(model, batch, measured=step.measured)
        assert num_items_in_batch is not None
        loss, parts = step.loss(batch, found, num_items_in_batch)
        if inputs.get("last") and (penalty := self.method.penalty(self.student.inner)) is not None:
            loss = loss + penalty.to(loss.dtype) / self.accelerator.num_processes  # the ranks' losses are added up
        self.recorder.trained(step.number, batch, found, {**parts, "loss": loss})
        loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def _losses(self, model: nn.Module, batch: Batch, *, measured: bool = False) -> Losses:
        """Both losses of a pack, in the wrapped model's forward. measured: with the norms of their gradients."""

        def compute() -> Losses:
            hidden, head = self.student.hidden(batch.pack), self.student.head()
            if batch.teacher is not None:
                self.recorder.distributions(hidden, head, batch, logged=self._is_logged)
            if (gap := gap_in(batch, self.scoring.compared, hidden, head)) is not None:
                self.recorder.engine_gap(gap)
            return losses(hidden, head, batch, self.args, measured=measured)

        with self.accelerator.autocast():
            return inside_forward(model, self.accelerator.unwrap_model(model), compute)

    @property
    def _is_logged(self) -> bool:
        """Whether the present step ends with a line of metrics."""
        every = self.state.logging_steps
        return bool(every) and self.args.logging_strategy == "steps" and (self.state.global_step + 1) % every == 0

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)  # the one that was given to the trainer, if any
        # FSDP and DeepSpeed keep parameters of their own in full precision.
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled) and (count := keep_masters(optimizer)):
            logger.info("%d bf16 parameters have fp32 master weights in the optimizer", count)
        return optimizer

    # ---- evaluation ----

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Mean cross-entropy over the answers of a batch of rows. No rollouts, and no change of lambda."""
        batch = student_batch([Unit(example) for example in inputs]).to(self.args.device)
        with torch.no_grad(), self.student.attention():
            sft = self._losses(model, batch).sft
        return sft / len(batch.sft_labels), None, None

    # ---- before, between and after steps (called by `StepCallback`) ----

    def begin(self) -> None:
        """Model, optimizer and checkpoint are in place: attach the engine, open the files, say what will be done."""
        if self.args.use_liger_kernel and self.teacher is not None and not self.teacher.shares_student:
            # The student's is the Trainer's to do.
            apply_liger_kernel(self.teacher.model.model, self.args.liger_kernel_config)
        unwrapped = self.accelerator.unwrap_model(self.model)
        self.generation.attach(unwrapped, self.processing_class, deepspeed=self.is_deepspeed_enabled)
        if self.is_world_process_zero():
            self.recorder.open(self.state.global_step)
            steps, engine = self.state.max_steps, self.generation.name
            lines = describe(self.args, self.prepared.targets, self.train_dataset, self.prepared.notes, steps, engine)
            print("\n".join(lines), file=sys.stderr)
        self.recorder.clock.reset()

    def after_optimizer(self) -> None:
        self.recorder.clock.since_last_part("optimizer")
        self.balance.commit()
        if not len(self.queue):  # with rollouts in store the engine is not asked before the next refresh
            self.generation.refresh()

    def after_step(self) -> None:
        self.recorder.end_step(self._step)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds losses, lambda, times and rollout statistics to a logged step, and writes it to metrics.jsonl."""
        if self.is_in_train and "loss" in logs and self.recorder.window.steps:
            head = {"step": self.state.global_step, "epoch": self.state.epoch}
            k_for = partial(self.scoring.k_for, wrapper=self.model_wrapped)
            logs = self.recorder.line(head, logs, self._sum, k_for, self.processing_class.decode)
        super().log(logs, start_time)

    # ---- checkpoints ----

    def train(
        self, resume_from_checkpoint: str | os.PathLike[str] | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As in transformers. True resumes from the last whole checkpoint: a kill may have left a part of a newer one.
        A damaged one that is given by its path is refused."""
        checkpoint = self._state.resume(resume_from_checkpoint)
        try:
            result = super().train(checkpoint, *args, **kwargs)
            # Checkpoints hold the weights before it, so a resumed run does it once, like any other.
            self.method.finish(self.student.inner)
            self.generation.refresh_if_given()  # also where the best weights came back after the last step
            return result
        finally:
            self._close()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if not _internal_call:  # not a checkpoint
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.method.finish_saved(Path(output_dir or self.args.output_dir))
            self.accelerator.wait_for_everyone()

    def _save(self, *args: Any, **kwargs: Any) -> None:
        with without_bars():
            super()._save(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
        self._state.write(folder)
        self.recorder.write_rollouts(self.processing_class.decode)
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            list_files(folder)

    def _close(self) -> None:
        try:
            if self._progress is not None:
                self._progress.close(whole=False)
            self.recorder.write_rollouts(self.processing_class.decode)
        finally:  # after an error of the device it cannot be read
            self.recorder.close()
            self.generation.close()
