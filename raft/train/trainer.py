"""RAFTTrainer: transformers.Trainer with rollouts and a teacher before each step, and a balanced pair of losses in it.

What is overridden, and why nothing else: `get_batch_samples` sees the whole accumulated batch of an optimizer step before
its first forward, which is where rollouts are drawn and the teacher scores them; `compute_loss` does the one packed forward.
Everything around them (optimizer, schedule, accumulation, checkpoints, callbacks, loggers, distribution) is the Trainer's.
"""

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.integrations.liger import apply_liger_kernel

from raft.engines import Completion, Engine, Sampling, eos_ids
from raft.errors import RunFolderError
from raft.models import load_model, load_tokenizer
from raft.models.language_model import LanguageModel, check_architecture, inside_forward, is_sharded
from raft.models.packing import Span, move
from raft.runs import JsonlAppender, read_jsonl, write_json
from raft.train import fapm
from raft.train.balance import Balance, mean_norm
from raft.train.batching import Unit, check_budget, split_alike, units
from raft.train.checkpoint import FILES, damage, last_checkpoint, list_files, read_state, state_name
from raft.train.clock import Clock
from raft.train.config import RAFTConfig
from raft.train.data import Example, digest, render
from raft.train.describe import describe
from raft.train.flops import Flops, peak_flops
from raft.train.gap import drops, gap_alone, gap_in, to_compare
from raft.train.inputs import check_data, check_fsdp, check_settings, fit, render_evaluation, rows_from
from raft.train.losses import Batch, Losses, covered_mass, losses, statistics, student_batch
from raft.train.master import keep_masters
from raft.train.noise import without_bars
from raft.train.progress import show_progress
from raft.train.records import RolloutLog, Window, drop_after
from raft.train.rollout import RolloutQueue, Scored
from raft.train.saving import check_saves
from raft.train.targets import targets
from raft.train.teacher import Teacher
from raft.train.watch import Finding, Watch

logger = logging.getLogger(__name__)


class RAFTTrainer(Trainer):
    """Trains a causal language model by one of the methods of `raft.train.methods`.

    model: a path or name, or a model of transformers, plain or with LoRA adapters.
    train_dataset, eval_dataset: rows as `raft.rows` takes them, in memory or in a file; eval_loss is the cross-entropy of
    the answers, a mean over batches as in transformers.
    engine: an object of the Engine protocol that follows this model's weights; it is used and not closed. None: built by need.
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
        rows = None if train_dataset is None else rows_from(train_dataset, "train_dataset")
        check_data(args, rows, eval_dataset)
        self._targets = targets(rows or [], args)
        if isinstance(model, (str, os.PathLike)):
            tokenizer = processing_class or load_tokenizer(model)
            check_architecture(model)
            loaded: Any = load_model(model, dtype=getattr(torch, args.param_dtype))
        else:
            loaded = model
            tokenizer = processing_class or load_tokenizer(loaded.config._name_or_path)
        self.student = LanguageModel(loaded)
        self.student.check()
        check_saves(loaded, tokenizer)
        fit(args, self.student)
        self._ends = ends = eos_ids(self.student.inner, tokenizer)
        self.notes: Any
        examples, self.notes = None, None
        if rows is not None:
            examples, self.notes = render(rows, tokenizer, args, ends, vocabulary=self.student.vocabulary)
        self._digest = digest(examples or [])
        drawn = args.rollouts_per_prompt if args.preset.distills else 0
        check_budget(args.max_tokens_per_micro_batch, examples or [], drawn, args.rollout_max_tokens)
        evaluated = render_evaluation(eval_dataset, tokenizer, args, ends, self.student.vocabulary)
        super().__init__(
            model=loaded,
            args=args,
            data_collator=list,
            train_dataset=examples,
            eval_dataset=evaluated,
            processing_class=tokenizer,
            **trainer_kwargs,
        )
        # The losses are divided by the whole accumulated batch below; the Trainer must not divide once more.
        self.model_accepts_loss_kwargs = True
        if isinstance(model, (str, os.PathLike)):
            self.student.use_flash_attention()
        if self.is_deepspeed_enabled:
            args.check_deepspeed()
        if self.is_fsdp_enabled:
            check_fsdp(args, loaded)
        self._base: dict[str, Tensor] | None = None
        if args.preset.prunes:
            # Before any training: a resumed run loads its checkpoint later, in `train`.
            fapm.check_whole(loaded, sharded=self.is_fsdp_enabled or self.is_deepspeed_enabled)
            self._base = fapm.snapshot(loaded)
        self.teacher = (
            Teacher(self.student, teacher, device=args.device, offload=args.teacher_offload, tokenizer=tokenizer)
            if args.preset.distills
            else None
        )
        self.engine, self._own_engine = engine, engine is None
        self.balance = Balance(
            args.ema_beta,
            args.ema_eps,
            lambda_min=args.lambda_min,
            lambda_max=args.lambda_bound,
            fixed=args.fixed_lambda,
        )
        self.queue = RolloutQueue(args)
        self.window = Window()
        self.rollout_log = RolloutLog(args.log_rollouts)
        self.clock = Clock(args.device)
        self._flops = Flops(self.student.inner)
        peak = peak_flops(args.device, args.peak_tflops)
        self._peak_flops = None if peak is None else peak * args.world_size
        self._weight: Tensor | None = None  # lambda of the last pack
        self._rollouts: Tensor  # scored ones of the step, over all ranks
        # [4] float64: L_SFT and its tokens, L_KL and its rollouts, summed over the packs so far. Where gradients are
        # balanced: their squared norms in place of the losses.
        self._seen: Tensor
        self._measured = False  # whether this step measures the gradients of both losses
        self._drawn = False  # whether the engine was asked in this step
        self._compared: Scored | None = None  # the rollout of this step that tells whether the engine is this model
        self._files: dict[str, JsonlAppender] = {}
        self.watch = Watch(args)
        self._looked_at: list[Scored] = []  # rollouts of the last refresh, for a look at the teacher
        self.add_callback(_Steps(self))
        self._progress = show_progress(self)

    # ---- a step ----

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[Example]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor | None]:
        """Rows of one optimizer step -> rollouts -> teacher -> packed micro-batches, and the answer tokens over all ranks."""
        self.clock.begin_step()
        step = self.state.global_step
        self._drawn = False
        micros = self.queue.take(epoch_iterator, num_batches, step, self.state.max_steps - step, self._generate)
        if not micros:
            return [], None
        for micro in micros:
            self.window.add_drawn(micro)
        share = self.student.shares_prompts
        rows = [units(micro, self.args.mask_truncated, share) for micro in micros]
        scored = [s for units_of_micro in rows for row in units_of_micro for s in row.scored]
        self._score(scored)
        self._compared = to_compare(scored) if self._drawn else None
        if self._compared is not None and drops(self.student.model):
            self._compare_alone(self._compared)
        packs = [[student_batch(chosen, share=share).to(device) for chosen in groups] for groups in self._packs(rows)]
        batches = [batch for chosen in packs for batch in chosen]
        for batch in batches:
            for s in batch.scored:
                s.teacher = None  # the batch has it now, and goes with its step
        counts = [sum(len(b.sft_labels) for b in batches), sum(len(b.scored) for b in batches)]
        totals = self.accelerator.reduce(move(torch.tensor(counts), device), "sum")
        tokens, self._rollouts = totals.unbind()
        every = self.args.log_gradient_parts
        self._measured = self.args.balances_gradients or bool(every and (step + 1) % every == 0)
        self._seen = torch.zeros(4, dtype=torch.float64, device=device)
        # The Trainer counts the tokens of "input_ids".
        inputs = [{"input_ids": _token_ids(chosen, device), "packs": chosen} for chosen in packs]
        return inputs, tokens

    def _packs(self, rows: list[list[Unit]]) -> list[list[list[Unit]]]:
        """Rows of each micro-batch -> rows of each pack of each micro-batch; the last micro-batch always has one."""
        budget = self.args.max_tokens_per_micro_batch
        if budget is None:
            return [[chosen] for chosen in rows]
        packs = split_alike([row for chosen in rows for row in chosen], budget, self.accelerator)
        ends = [len(packs) * (i + 1) // len(rows) for i in range(len(rows))]
        return [packs[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def _generate(self, prompts: list[list[int]], sampling: Sampling) -> list[Completion]:
        assert self.engine is not None
        self._drawn = True
        with self.clock.part("rollout"):
            completions = self.engine.generate(prompts, sampling)
            if self.args.release_cache:
                self.engine.release()
        self.window.add(
            "flops",
            self._flops.forward(
                [Span(0, len(p) + len(c.token_ids)) for p, c in zip(prompts, completions, strict=True)],
                sum(len(c.token_ids) for c in completions),
            ),
        )
        return completions

    def _score(self, scored: list[Scored]) -> None:
        """Asks the teacher for this step; for all steps of the refresh where it has to come from the CPU for it."""
        if self.teacher is None:
            return
        if not self.teacher.is_sharded(self.model_wrapped) and all(s.teacher is not None for s in scored):
            return
        if self.args.teacher_offload:
            ahead = [units(micro, self.args.mask_truncated) for micro in self.queue]
            scored = [*scored, *(s for rows in ahead for row in rows for s in row.scored)]
        with self.clock.part("teacher"), self.accelerator.autocast(), self.teacher.present():
            spans = self.teacher.score(scored, self.args, self.model_wrapped)
        self._looked_at = [Scored(s.example, s.completion) for s in scored[:4]]
        positions = sum(len(s.completion.token_ids) for s in scored)
        self.window.add("teacher_tokens", sum(span.tokens for span in spans))
        self.window.add("flops", self._flops.forward(spans, positions))

    def _compare_alone(self, compared: Scored) -> None:
        """The engine's gap where the step's own forward draws masks of dropout. Sharded weights would take all
        ranks."""
        self._compared = None
        if not is_sharded(self.student.model, self.model_wrapped):
            with self.clock.part("forward_backward"), self.accelerator.autocast():
                self._add_gap(gap_alone(compared, self.student))

    def _add_gap(self, gap: Tensor) -> None:
        self.window.add("engine_gap", gap)
        self.window.add("engine_gaps", 1)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        packs: list[Batch] = inputs["packs"]
        total = torch.zeros((), device=self.args.device)
        # Around the backward too: gradient checkpointing runs the attention again there.
        with self.clock.part("forward_backward"), self.student.attention():
            for batch in packs:
                # In earlier micro-batches the Trainer holds the reduction back itself; FSDP2 would not keep that beyond ours.
                held = batch is not packs[-1] and self.accelerator.sync_gradients
                with self.accelerator.no_sync(model) if held else nullcontext():
                    total += super().training_step(model, {"batch": batch}, num_items_in_batch)
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
        found = self._losses(model, batch, measured=self._measured)
        assert num_items_in_batch is not None
        window = self.window
        loss = found.sft / num_items_in_batch
        window.add("loss_sft", loss)
        if found.squares is not None:
            window.add("gradient_sft", found.squares[0] / num_items_in_batch**2)
        if self.args.preset.distills:
            rollouts = self._rollouts.clamp(min=1)
            divergence = found.kl / rollouts
            self._weight = self._weigh(batch, found, num_items_in_batch)
            loss = loss + self._weight.to(divergence.dtype) * divergence
            window.add("loss_kl", divergence)
            if found.squares is not None:
                window.add("gradient_kl", found.squares[1] * (self._weight / rollouts) ** 2)
            if self.is_world_process_zero():
                self.rollout_log.add(self.state.global_step + 1, batch, found.kl_per_rollout)
        window.add("loss", loss)
        window.add("packed_tokens", batch.pack.tokens)
        positions = len(batch.sft_positions) + len(batch.kl_positions)
        window.add("flops", self._flops.training_share * self._flops.forward(batch.pack.spans, positions))
        loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def _losses(self, model: nn.Module, batch: Batch, *, measured: bool = False) -> Losses:
        """Both losses of a pack, in the wrapped model's forward. measured: with the norms of their gradients."""

        def compute() -> Losses:
            hidden, head = self.student.hidden(batch.pack), self.student.head()
            if batch.teacher is not None:
                self.window.add("mass", covered_mass(batch.teacher, self.args.temperature).sum())
                self.window.add("mass_tokens", len(batch.kl_positions))
                if self._is_logged:
                    self.window.add_statistics(statistics(hidden, head, batch, self.args))
            if (gap := gap_in(batch, self._compared, hidden, head)) is not None:
                self._add_gap(gap)
            return losses(hidden, head, batch, self.args, measured=measured)

        with self.accelerator.autocast():
            return inside_forward(model, self.accelerator.unwrap_model(model), compute)

    @property
    def _is_logged(self) -> bool:
        """Whether the present step ends with a line of metrics."""
        every = self.state.logging_steps
        return bool(every) and self.args.logging_strategy == "steps" and (self.state.global_step + 1) % every == 0

    def _weigh(self, batch: Batch, found: Losses, num_items_in_batch: Tensor | int) -> Tensor:
        """lambda of this pack, from the losses of all ranks in this step so far, or from the norms of their
        gradients."""
        squares = found.squares if self.args.balances_gradients else None
        sft, kl = squares or (found.sft.detach(), found.kl.detach())
        counts = move(torch.tensor([len(batch.sft_labels), len(batch.scored)], dtype=torch.float64), sft.device)
        self._seen = self._seen + torch.stack((sft, counts[0], kl, counts[1]))
        seen_sft, tokens, seen_kl, rollouts = self.accelerator.reduce(self._seen, "sum").unbind()
        if squares is None:
            return self.balance.weigh(seen_sft / tokens, seen_kl / rollouts)
        return self.balance.weigh(
            mean_norm(seen_sft, tokens, num_items_in_batch), mean_norm(seen_kl, rollouts, self._rollouts)
        )

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Mean cross-entropy over the answers of a batch of rows. No rollouts, and the balance of the losses never hears of it."""
        batch = student_batch([Unit(example) for example in inputs]).to(self.args.device)
        with torch.no_grad(), self.student.attention():
            sft = self._losses(model, batch).sft
        return sft / len(batch.sft_labels), None, None

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in transformers; eval_dataset: rows as in the constructor."""
        with self._evaluating():
            return super().evaluate(self._rendered(eval_dataset), *args, **kwargs)

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, metrics only; test_dataset: rows as in the constructor."""
        with self._evaluating():
            return super().predict(self._rendered(test_dataset), *args, **kwargs)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Of a failure the Trainer tells its callbacks nothing, and the progress would go on for ever."""
        try:
            yield
        finally:
            if self._progress is not None:
                self._progress.end_evaluation()

    def _rendered(self, dataset: Any) -> Any:
        # The Trainer calls `evaluate` again for each of several sets, by its name or with what is rendered already.
        if isinstance(self.eval_dataset, dict) and isinstance(dataset, str) and dataset in self.eval_dataset:
            return dataset
        if isinstance(dataset, list) and dataset and isinstance(dataset[0], Example):
            return dataset
        vocabulary = self.student.vocabulary
        return render_evaluation(dataset, self.processing_class, self.args, self._ends, vocabulary)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)  # the one that was given to the trainer, if any
        # FSDP and DeepSpeed keep parameters of their own in full precision.
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled) and (count := keep_masters(optimizer)):
            logger.info("%d bf16 parameters have fp32 master weights in the optimizer", count)
        return optimizer

    # ---- before, between and after steps (called by `_Steps`) ----

    def begin(self) -> None:
        """Model, optimizer and checkpoint are in place: attach the engine, cut what a later life of this run wrote, report."""
        if self.args.use_liger_kernel and self.teacher is not None and not self.teacher.shares_student:
            # The student's is the Trainer's to do.
            apply_liger_kernel(self.teacher.model.model, self.args.liger_kernel_config)
        if self.args.preset.distills and self.engine is None:
            from raft.engines import make_engine

            self.engine = make_engine(
                self.args.rollout_engine,
                self.accelerator.unwrap_model(self.model),
                self.processing_class,
                max_model_len=self.args.max_length,
                # DeepSpeed updates buffers of its own, of which the parameters are views.
                weights="copied" if self.is_deepspeed_enabled else self.args.engine_weights,
                gpu_memory_utilization=self.args.vllm_gpu_memory_utilization,
                release_on_gpu=self.args.release_cache,
            )
        if self.engine is not None:
            self.engine.refresh()
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir)
            for name in ("metrics.jsonl", "rollouts.jsonl", "warnings.jsonl"):
                drop_after(folder / name, self.state.global_step)
                self._files[name] = JsonlAppender(folder / name)
            self.watch = Watch(self.args, known=[line["name"] for line in read_jsonl(folder / "warnings.jsonl")])
            engine = getattr(self.engine, "name", "an engine")
            lines = describe(self.args, self._targets, self.train_dataset, self.notes, self.state.max_steps, engine)
            print("\n".join(lines), file=sys.stderr)
        self.clock.reset()

    def after_optimizer(self) -> None:
        self.clock.since_last_part("optimizer")
        self.balance.commit()
        # With rollouts in store the engine is not asked before the next refresh.
        if self.engine is not None and not len(self.queue):
            with self.clock.part("refresh"):
                self.engine.refresh()

    def after_step(self) -> None:
        self.window.steps += 1
        share = 1 / self.accelerator.num_processes
        if self._weight is not None:
            self.window.add_lambda(self._weight, share)
            self.window.add("kl_steps", (self._rollouts > 0) * share)
        if self._measured:
            self.window.add("gradient_steps", share)
            if self._weight is not None:
                self.window.add("gradient_kl_steps", (self._rollouts > 0) * share)
        self.clock.end_step()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds losses, lambda, times and rollout statistics to a logged training step, and writes it to metrics.jsonl."""
        if self.is_in_train and "loss" in logs and self.window.steps:
            steps = self.window.steps
            most_lambda = None if self.args.lambda_bound is None else self.window.most_lambda()
            line = self.window.drain(lambda t: self.accelerator.reduce(t, "sum"), self.args.device, self.clock.reset())
            fields = line.fields(self._peak_flops)
            if self.is_world_process_zero():
                head = {"step": self.state.global_step, "epoch": self.state.epoch}
                self._files["metrics.jsonl"].append({**head, **logs, **fields})
                self._tell(
                    self.watch.metrics(self.state.global_step, steps, {**logs, **fields}, most_lambda, self._k_for)
                )
            self._write_rollouts()
            for name in ("seconds", "share", "phase_tokens_per_second"):
                fields |= {f"{name}_{part}": value for part, value in fields.pop(name).items()}
            logs = {**logs, **{name: value for name, value in fields.items() if value is not None}}
        super().log(logs, start_time)

    def _tell(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            logger.warning("step %d: %s", finding.step, finding.text)
            self._files["warnings.jsonl"].append(vars(finding))

    def _k_for(self, share: float) -> int | None:
        assert self.teacher is not None
        with self.accelerator.autocast(), self.teacher.present():
            return self.teacher.k_for(share, self._looked_at, self.args.temperature, self.model_wrapped)

    def _write_rollouts(self) -> None:
        lines = self.rollout_log.drain(self.processing_class.decode)
        for line in lines:
            self._files["rollouts.jsonl"].append(line)
        if lines:
            self._tell(self.watch.rollouts(lines))

    # ---- checkpoints ----

    def train(
        self, resume_from_checkpoint: str | os.PathLike[str] | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As in transformers. True resumes from the last whole checkpoint: a kill may have left a part of a newer one. A
        damaged one that is given by its path is refused."""
        checkpoint: str | None = None
        if isinstance(resume_from_checkpoint, (str, os.PathLike)):
            checkpoint = os.fspath(resume_from_checkpoint)
        elif resume_from_checkpoint:
            checkpoint = last_checkpoint(self.args.output_dir)
            if checkpoint is None:
                raise RunFolderError(f"{self.args.output_dir}: no whole checkpoint to resume from")
        self._restore(checkpoint)
        if checkpoint is not None and (reason := damage(Path(checkpoint))) is not None:
            raise RunFolderError(f"{checkpoint}: is damaged: {reason}; resume from another checkpoint")
        try:
            result = super().train(checkpoint, *args, **kwargs)
            self._prune()
            if self.engine is not None and not self._own_engine:
                self.engine.refresh()  # pruning, or going back to the best weights, came after the last one
            return result
        finally:
            self._close()

    def _save(self, *args: Any, **kwargs: Any) -> None:
        with without_bars():
            super()._save(*args, **kwargs)

    def _prune(self) -> None:
        """The post-step of method fapm. Checkpoints hold the weights before it, so a resumed run prunes once, like any other."""
        if self._base is not None:
            fapm.prune_task_vector(self.student.inner, self._base, self.args.fapm_sparsity)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # First: the Trainer's own state file ends a checkpoint, and older ones are removed once it is there.
        folder = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
        state = {
            "balance": self.balance.state_dict(),
            "averages": self._averages,
            "rollouts": self.queue.state_dict(),
            "window": self.window.state_dict(self.clock.reset()),
            "rendered": self._digest,
        }
        self._write_rollouts()
        if self.args.should_save:
            (folder / FILES).unlink(missing_ok=True)  # of a damaged one that is written anew
        write_json(folder / self._state_name, state)
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            list_files(folder)

    def _restore(self, checkpoint: str | None) -> None:
        fresh: dict[str, Any] = {
            "balance": {"sft": 0.0, "kl": 0.0, "steps": 0.0, "lambda": 0.0},
            "rollouts": [],
            "window": Window().state_dict({}),
        }
        state = fresh if checkpoint is None else read_state(Path(checkpoint, self._state_name))
        if state is None:
            raise RunFolderError(
                f"{checkpoint}: expected {self._state_name}, which every checkpoint of this trainer has"
            )
        averages = state.get("averages", "losses")
        if state["balance"]["steps"] and averages != self._averages and self.balance.fixed is None:
            raise RunFolderError(
                f"{checkpoint}: its lambda follows averages of {averages}, not of {self._averages} as balance: "
                f"{self.args.balance} does; expected the setting that it was made with"
            )
        if state.get("rendered", self._digest) != self._digest:
            logger.warning(
                "%s: the rows are rendered to other tokens than when this checkpoint was made: expected the same rows, "
                "tokenizer and chat template; one that writes today's date does so",
                checkpoint,
            )
        self.balance.load_state_dict(state["balance"])
        self.queue.load_state_dict(state["rollouts"])
        try:
            self.window.load_state_dict(state["window"])
        except KeyError as error:
            raise RunFolderError(
                f"{checkpoint}: written by another version of raft-distill, cannot be resumed"
            ) from error

    @property
    def _averages(self) -> str:
        """What lambda follows averages of."""
        return "gradients" if self.args.balances_gradients else "losses"

    @property
    def _state_name(self) -> str:
        return state_name(self.args.process_index, self.args.world_size)

    def _close(self) -> None:
        try:
            if self._progress is not None:
                self._progress.close(whole=False)
            self._write_rollouts()
        finally:  # after an error of the device it cannot be read
            for file in self._files.values():
                file.close()
            self._files.clear()
            if self._own_engine and self.engine is not None:
                self.engine.close()
                self.engine = None


class _Steps(TrainerCallback):
    """Calls the trainer at the places that the Trainer offers to callbacks only."""

    def __init__(self, trainer: RAFTTrainer):
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.begin()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.after_optimizer()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.after_step()


def _token_ids(packs: Sequence[Batch], device: torch.device) -> Tensor:
    """[1, L] ids of all packs together."""
    if len(packs) == 1:
        return packs[0].pack.input_ids
    return torch.cat([torch.empty(1, 0, dtype=torch.int64, device=device), *(b.pack.input_ids for b in packs)], dim=1)
