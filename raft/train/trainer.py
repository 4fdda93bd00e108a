"""RAFTTrainer: transformers.Trainer that adds rollouts, a teacher that scores them, and the loss L_SFT + lambda * L_KL.

`get_batch_samples` gets all micro-batches of an optimizer step before its first forward; there rollouts are generated
and scored by the teacher. `compute_loss` runs the forward of one pack. Optimizer, schedule, gradient accumulation,
checkpoints, callbacks, loggers and parallelism are those of transformers.
"""

import logging
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.integrations.liger import apply_liger_kernel
from transformers.trainer_utils import TrainOutput

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
from raft.train.inputs import Evaluated, Rows, check_settings, prepare
from raft.train.lines import MetricsLine
from raft.train.losses import Batch, Losses, losses, student_batch
from raft.train.master import keep_masters
from raft.train.noise import without_bars
from raft.train.parallel import check_parallel, reduction_held
from raft.train.progress import show_progress
from raft.train.recorder import Recorder
from raft.train.rollout import RolloutQueue
from raft.train.scoring import Scoring
from raft.train.state import ResumableState
from raft.train.step import MicroBatchInputs, PackInputs, Step, make_balance, micro_batches
from raft.train.teacher import make_teacher

logger = logging.getLogger(__name__)


class RAFTTrainer(EvaluatingTrainer):
    """Trains a causal language model by one of the methods of `raft.methods`.

    model: a path or name, or a transformers model with or without LoRA adapters.
    train_dataset, eval_dataset: rows in a form of `raft.rows`, in memory, or the path of a file or folder; eval_loss is
    the cross-entropy of the answers, a mean over batches as in transformers.
    engine: an object of the Engine protocol that follows this model's weights; it is not closed here. None: `train`
    builds one and closes it.
    teacher: a path or a model. None: the model as it is now (with LoRA: with its adapters switched off).
    Other arguments go to transformers.Trainer.
    """

    args: RAFTConfig

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module,
        args: RAFTConfig,
        train_dataset: Rows | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        engine: Engine | None = None,
        teacher: str | nn.Module | None = None,
        eval_dataset: Evaluated | None = None,
        **trainer_kwargs: object,
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
        # The losses are already divided by the numbers of the whole step; the Trainer must not divide them again.
        self.model_accepts_loss_kwargs = True
        if isinstance(model, (str, os.PathLike)):
            self.student.use_flash_attention()
        check_parallel(self, self.student.model)
        self.method = args.preset(args)
        # With the weights before training: a resumed run loads its checkpoint later, in `train`.
        self.method.begin(self.student.model, sharded=self.is_fsdp_enabled or self.is_deepspeed_enabled)
        self.teacher = make_teacher(args, self.student, teacher, prepared.tokenizer)
        self.balance = make_balance(args)
        self.queue = RolloutQueue(args)
        self.recorder = Recorder(args, self.student)
        self.generation = Generation(args, engine, self.recorder)
        self.scoring = Scoring(args, self.student, self.teacher, self.recorder, self.accelerator)
        self._state = ResumableState(args, self.balance, self.queue, self.recorder, digest(prepared.examples or []))
        self._step: Step
        self.add_callback(StepCallback(self))
        self._progress = show_progress(self)

    @property
    def engine(self) -> Engine | None:
        return self.generation.engine

    # ---- a step ----

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[Example]], num_batches: int, device: torch.device
    ) -> tuple[list[MicroBatchInputs], Tensor | None]:
        """Generates and scores the rollouts of one optimizer step. Returns its packs by micro-batch, and the number of
        answer tokens over all ranks."""
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
        inputs = micro_batches(rows, self.args, self.accelerator, share=share)
        batches = [batch for micro_batch in inputs for batch in micro_batch["packs"]]
        counts = [sum(len(b.sft_labels) for b in batches), sum(len(b.scored) for b in batches)]
        tokens, rollouts = self._sum(move(torch.tensor(counts), device)).unbind()
        self._step = Step(self.args, self.balance, self._sum, rollouts, step + 1)
        return inputs, tokens

    def _sum(self, value: Tensor) -> Tensor:
        """The sum over all ranks."""
        return self.accelerator.reduce(value, "sum")

    def training_step(
        self, model: nn.Module, inputs: MicroBatchInputs, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        packs = inputs["packs"]
        total = torch.zeros((), device=self.args.device)
        # `attention` includes the backward pass: gradient checkpointing runs the attention again there.
        with self.recorder.clock.part("forward_backward"), self.student.attention():
            for batch in packs:
                last = batch is packs[-1]
                with reduction_held(self.accelerator, model, held=not last):
                    inputs_of_pack: PackInputs = {"batch": batch, "last": last and self.accelerator.sync_gradients}
                    total += super().training_step(model, inputs_of_pack, num_items_in_batch)
        packs.clear()  # frees them now: the Trainer keeps the inputs until it has those of the next step
        return total

    def compute_loss(
        self,
        model: nn.Module,
        inputs: PackInputs,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """What one pack adds to L_SFT + lambda * L_KL of the step, times the number of ranks.

        The factor is needed because gradients are averaged over the ranks.
        """
        batch, step = inputs["batch"], self._step
        found = self._losses(model, batch, measured=step.measured)
        assert num_items_in_batch is not None
        loss, parts = step.loss(batch, found, num_items_in_batch)
        if inputs["last"] and (penalty := self.method.penalty(self.student.model)) is not None:
            parts["penalty"] = penalty.to(loss.dtype) / self.accelerator.num_processes  # the ranks' losses are summed
            loss = loss + parts["penalty"]
        self.recorder.trained(step.number, batch, found, {**parts, "loss": loss})
        loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def _losses(self, model: nn.Module, batch: Batch, *, measured: bool = False) -> Losses:
        """Both losses of a pack, inside the wrapped model's forward. measured: also the norms of their gradients."""

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
        """Whether this step writes a line of metrics."""
        every = self.state.logging_steps
        return bool(every) and self.args.logging_strategy == "steps" and (self.state.global_step + 1) % every == 0

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        # FSDP and DeepSpeed keep their own fp32 copies of the parameters.
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled) and (count := keep_masters(optimizer)):
            logger.info("%d bf16 parameters have fp32 master weights in the optimizer", count)
        return optimizer

    # ---- evaluation ----

    def prediction_step(
        self, model: nn.Module, inputs: list[Example], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Mean cross-entropy over the answer tokens of a batch of rows; no rollouts, and lambda does not change."""
        batch = student_batch([Unit(example) for example in inputs]).to(self.args.device)
        with torch.no_grad(), self.student.attention():
            sft = self._losses(model, batch).sft
        return sft / len(batch.sft_labels), None, None

    # ---- called by `StepCallback` before, during and after steps ----

    def begin(self) -> None:
        """Once model, optimizer and checkpoint are loaded: attaches the engine, opens the files, prints the plan."""
        if self.args.use_liger_kernel and self.teacher is not None and not self.teacher.shares_student:
            # The Trainer applies the kernels to the student.
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
        if not len(self.queue):  # while rollouts are left, the engine does not generate and needs no new weights
            self.generation.refresh()

    def after_step(self) -> None:
        self.recorder.end_step(self._step)

    def log(self, logs: MetricsLine, start_time: float | None = None) -> None:
        """Adds losses, lambda, times and rollout statistics to the logs of a step, and writes them to metrics.jsonl."""
        if self.is_in_train and "loss" in logs and self.recorder.window.steps:
            step, epoch, decode = self.state.global_step, self.state.epoch, self.processing_class.decode
            k_for = partial(self.scoring.k_for, wrapper=self.model_wrapped)
            super().log(self.recorder.line(step, epoch, logs, self._sum, k_for, decode), start_time)
        else:
            super().log(logs, start_time)

    # ---- checkpoints ----

    def train(
        self, resume_from_checkpoint: str | os.PathLike[str] | bool | None = None, *args: object, **kwargs: object
    ) -> TrainOutput:
        """As in transformers, but True skips damaged checkpoints (a kill may leave a partial one) and resumes from the
        last complete one. `RunFolderError` for a damaged checkpoint given by its path."""
        checkpoint = self._state.resume(resume_from_checkpoint)
        try:
            result = super().train(checkpoint, *args, **kwargs)
            # Checkpoints have the weights before this change, so that a resumed run also applies it exactly once.
            self.method.finish(self.student.model)
            self.generation.refresh_if_given()  # also needed if the Trainer has loaded the best weights at the end
            return result
        finally:
            self._close()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if _internal_call or not self.method.finishes_on_disk:  # checkpoints hold the weights as they are trained
            return
        self.accelerator.wait_for_everyone()
        try:
            if self.args.should_save:
                self.method.finish_saved(Path(output_dir or self.args.output_dir))
        finally:
            self.accelerator.wait_for_everyone()

    def _save(self, *args: object, **kwargs: object) -> None:
        with without_bars():
            super()._save(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
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
        finally:  # also if reading the losses fails after an error of the device
            self.recorder.close()
            self.generation.close()
