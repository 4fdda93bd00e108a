"""Records of a training: collects its numbers, writes metrics.jsonl, rollouts.jsonl and warnings.jsonl."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from raft.engines import Completion
from raft.models.language_model import LanguageModel, OutputHead
from raft.models.packing import Span
from raft.runs import JsonlAppender, read_jsonl
from raft.train.clock import Clock
from raft.train.config import RAFTConfig
from raft.train.flops import Flops, peak_flops
from raft.train.lines import MetricsLine, WarningLine
from raft.train.losses import Batch, Losses, covered_mass, statistics
from raft.train.records import RolloutLog, Window, WindowState, drop_after
from raft.train.rollout import MicroBatch, Scored
from raft.train.step import Step
from raft.train.watch import Watch

logger = logging.getLogger(__name__)

FILES = ("metrics.jsonl", "rollouts.jsonl", "warnings.jsonl")


class Recorder:
    """Sums of this rank since the last logged step, and on the first rank the files."""

    def __init__(self, args: RAFTConfig, student: LanguageModel):
        self.args = args
        self.clock = Clock(args.device)
        self.window = Window()
        self.watch = Watch(args)
        self.looked_at: list[Scored] = []  # rollouts scored last, used to find a K for a share of the teacher's mass
        self._rollouts = RolloutLog(args.log_rollouts)
        self._flops = Flops(student.inner)
        peak = peak_flops(args.device, args.peak_tflops)
        self._peak_flops = None if peak is None else peak * args.world_size
        self._files: dict[str, JsonlAppender] = {}

    def open(self, step: int) -> None:
        """Opens the files and removes lines of steps after `step`, which a resumed run writes again."""
        folder = Path(self.args.output_dir)
        for name in FILES:
            drop_after(folder / name, step)
            self._files[name] = JsonlAppender(folder / name)
        self.watch = Watch(self.args, known=[line["name"] for line in read_jsonl(folder / "warnings.jsonl")])

    # ---- during a step ----

    def generated(self, prompts: Sequence[Sequence[int]], completions: Sequence[Completion]) -> None:
        """Counts one call of the rollout engine."""
        pairs = zip(prompts, completions, strict=True)
        spans = [Span(0, len(prompt) + len(completion.token_ids)) for prompt, completion in pairs]
        positions = sum(len(completion.token_ids) for completion in completions)
        self.window.add("flops", self._flops.forward(spans, positions))

    def taken(self, micros: Iterable[MicroBatch]) -> None:
        """Counts the rollouts of a step."""
        for micro in micros:
            self.window.add_drawn(micro)

    def scored(self, scored: Sequence[Scored], spans: Sequence[Span]) -> None:
        """Counts rollouts that the teacher scored. spans: of the packs that it read."""
        self.looked_at = [Scored(s.example, s.completion) for s in scored[:4]]
        self.window.add("teacher_tokens", sum(span.tokens for span in spans))
        self.window.add("flops", self._flops.forward(spans, sum(len(s.completion.token_ids) for s in scored)))

    def engine_gap(self, gap: Tensor) -> None:
        self.window.add("engine_gap", gap)
        self.window.add("engine_gaps", 1)

    def distributions(self, hidden: Tensor, head: OutputHead, batch: Batch, *, logged: bool) -> None:
        """Adds the teacher's mass on the K tokens of a pack, and for a `logged` step the statistics of both models."""
        assert batch.teacher is not None
        self.window.add("mass", covered_mass(batch.teacher, self.args.temperature).sum())
        self.window.add("mass_tokens", len(batch.kl_positions))
        if logged:
            self.window.add_statistics(statistics(hidden, head, batch, self.args))

    def trained(self, step: int, batch: Batch, found: Losses, means: Mapping[str, Tensor]) -> None:
        """Adds a pack of optimizer step `step`, counted from 1. means: what it adds to the step's losses and norms."""
        for name, value in means.items():
            self.window.add(name, value)
        if "loss_kl" in means and self.args.process_index == 0:
            self._rollouts.add(step, batch, found.kl_per_rollout)
        self.window.add("packed_tokens", batch.pack.tokens)
        positions = len(batch.sft_positions) + len(batch.kl_positions)
        self.window.add("flops", self._flops.training_share * self._flops.forward(batch.pack.spans, positions))

    def end_step(self, step: Step) -> None:
        self.window.steps += 1
        share = 1 / self.args.world_size
        scored = (step.rollouts > 0) * share
        if step.weight is not None:
            self.window.add_lambda(step.weight, share)
            self.window.add("kl_steps", scored)
        if step.measured:
            self.window.add("gradient_steps", share)
            if step.weight is not None:
                self.window.add("gradient_kl_steps", scored)
        self.clock.end_step()

    # ---- writing ----

    def line(
        self,
        step: int,
        epoch: float | None,
        logs: MetricsLine,  # what transformers logs
        reduce: Callable[[Tensor], Tensor],  # sum over the ranks
        k_for: Callable[[float], int | None],
        decode: Callable[..., str],
    ) -> dict[str, object]:
        """Writes the metrics of a logged step; returns `logs` with them added, flattened. Every rank must call it."""
        steps = self.window.steps
        most_lambda = None if self.args.lambda_bound is None else self.window.most_lambda()
        figures = self.window.drain(reduce, self.args.device, self.clock.reset()).figures(self._peak_flops)
        line: MetricsLine = {**logs, **figures}
        if self._files:
            self._files["metrics.jsonl"].append({"step": step, "epoch": epoch, **line})
            self._warn(self.watch.metrics(step, steps, line, most_lambda, k_for))
        self.write_rollouts(decode)
        parts = {f"{name}_{part}": x for name, of in line.items() if isinstance(of, dict) for part, x in of.items()}
        return {name: x for name, x in {**line, **parts}.items() if not (x is None or isinstance(x, dict))}

    def write_rollouts(self, decode: Callable[..., str]) -> None:
        lines = self._rollouts.drain(decode)
        for line in lines:
            self._files["rollouts.jsonl"].append(line)
        if lines:
            self._warn(self.watch.rollouts(lines))

    def _warn(self, warnings: Iterable[WarningLine]) -> None:
        for warning in warnings:
            logger.warning("step %d: %s", warning["step"], warning["text"])
            self._files["warnings.jsonl"].append(warning)

    def state_dict(self) -> WindowState:
        """The sums since the last line, for a checkpoint."""
        return self.window.state_dict(self.clock.reset())

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
