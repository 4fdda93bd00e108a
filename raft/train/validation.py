"""Validation during training: scores items before the first step and after every k-th epoch."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from raft.engines import Engine, Sampling
from raft.evaluate.suites import SUITES, Evaluation, evaluate
from raft.runs import JsonlAppender, read_jsonl
from raft.train.records import drop_after


class ValidationCallback(TrainerCallback):
    """Appends {"step", "epoch", "domain", "general", "format"} to a JSON Lines file; step 0 is the untrained model.

    items: as `raft.evaluate.evaluate` takes them. engine: one that follows the weights of the model under training.
    evaluate_fn(items, engine, sampling): in place of `raft.evaluate.evaluate`; only the scores of its result are read.
    A resumed run first drops the lines after its checkpoint and adds the line that is due there, if it is missing.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, object]],
        every_epochs: int,
        writer_path: str | Path,
        evaluate_fn: Callable[..., Evaluation] = evaluate,
        engine: Engine | None = None,
        sampling: Sampling | None = None,
    ):
        if engine is None:
            raise ValueError("engine: expected one that follows the weights of the model under training, found None")
        self.items, self.every_epochs, self.path = items, every_epochs, Path(writer_path)
        self.evaluate, self.engine = evaluate_fn, engine
        self.sampling = sampling or Sampling(temperature=0.0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.is_world_process_zero:
            drop_after(self.path, state.global_step)
        if state.global_step == 0 or self._due(state):
            self._validate(state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self._due(state):
            self._validate(state)

    def _due(self, state: TrainerState) -> bool:
        """Whether this is the end of a k-th epoch. state.epoch is a float with rounding errors, up to 1e-6 here."""
        epoch = state.epoch or 0.0
        whole = round(epoch)
        return whole > 0 and abs(epoch - whole) < 1e-6 and whole % self.every_epochs == 0

    def _validate(self, state: TrainerState) -> None:
        self.engine.refresh()  # on every rank: sharded weights are gathered from all of them
        if not state.is_world_process_zero or any(line["step"] == state.global_step for line in read_jsonl(self.path)):
            return
        scores = self.evaluate(self.items, self.engine, self.sampling)["scores"]
        with JsonlAppender(self.path) as file:
            file.append(
                {
                    "step": state.global_step,
                    "epoch": state.epoch or 0.0,
                    **{s: scores[s] for s in SUITES if s in scores},
                }
            )
