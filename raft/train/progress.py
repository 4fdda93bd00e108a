"""Progress of training: steps, epoch, time left and the main metrics. All metrics are in metrics.jsonl."""

from collections.abc import Sized

from transformers import ProgressCallback, Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

from raft.progress import Progress, say

SHOWN = {"loss": "loss", "loss_sft": "sft", "loss_kl": "kl", "lambda": "lambda", "tokens_per_second": "tok/s"}


class TrainingProgress(ProgressCallback):
    """Replaces transformers' bar, which fills log files and, on a terminal, is interrupted by its own metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.training_bar: _Lines | None = None
        self._training: Progress | None = None
        self._prediction: Progress | None = None
        self._epoch = ""
        self._shown: list[str] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.is_world_process_zero:
            self._epoch, self._shown, self.current_step = "", [], state.global_step
            self.training_bar = _Lines()
            self._training = Progress("train", state.max_steps, "step", done=state.global_step).start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self._training is not None:
            self._epoch = f"epoch {state.epoch or 0:.1f} of {state.num_train_epochs:g}"
            self._training.add(state.global_step - self.current_step, figures=[self._epoch, *self._shown])
            self.current_step = state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        if self._training is None or logs is None or "train_runtime" in logs:  # the summary line has the run time
            return
        if "loss_sft" not in logs:  # an evaluation, or a log of the user's own
            super().on_log(args, state, control, logs=logs, **kwargs)
            return
        rollout = logs.get("share_rollout")
        self._shown = [f"{short} {logs[name]:.4g}" for name, short in SHOWN.items() if name in logs]
        self._shown += [f"rollout {rollout:.0%}"] if rollout else []
        self._training.add(0, figures=[self._epoch, *self._shown])

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Sized,
        **kwargs: object,
    ) -> None:
        if not (state.is_world_process_zero and has_length(eval_dataloader)):
            return
        if self._prediction is None:  # the first call comes after the first step: its start time is not known
            self._prediction = Progress("evaluate", len(eval_dataloader), "step", done=1, final=False).start()
        else:
            self._prediction.add(1)

    def on_evaluate(self, *args: object, **kwargs: object) -> None:
        self.end_evaluation()

    def on_predict(self, *args: object, **kwargs: object) -> None:
        self.end_evaluation()

    def on_train_end(self, *args: object, **kwargs: object) -> None:
        self.close()

    def end_evaluation(self) -> None:
        if self._prediction is not None:
            self._prediction.stop()
            self._prediction = None

    def close(self, whole: bool = True) -> None:
        """whole: False after an error."""
        self.end_evaluation()
        if self._training is not None:
            self._training.stop(whole)
            self._training = None
            self.training_bar = None


class _Lines:
    """The part of the interface of transformers' bar that it uses to write a line."""

    write = staticmethod(say)


def show_progress(trainer: Trainer) -> TrainingProgress | None:
    """Replaces transformers' progress bar; None if the trainer has none."""
    progress = TrainingProgress()
    own = [c for c in trainer.callback_handler.callbacks if type(c) is ProgressCallback]
    if not own:
        return None
    trainer.remove_callback(own[0])
    trainer.add_callback(progress)
    return progress
