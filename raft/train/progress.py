"""The bar of a training run: steps, time left, and the numbers that one watches."""

from typing import Any

from transformers import ProgressCallback, Trainer, TrainerControl, TrainerState, TrainingArguments

SHOWN = {"loss": "loss", "loss_sft": "sft", "loss_kl": "kl", "lambda": "lambda", "tokens_per_second": "tok/s"}


class Progress(ProgressCallback):
    """transformers' bar with the last line's main numbers at its end. The whole line is in metrics.jsonl."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.training_bar is None or logs is None:
            return
        if "loss_sft" not in logs:  # an evaluation, or the end
            super().on_log(args, state, control, logs=logs, **kwargs)
            return
        shown = {short: f"{logs[name]:.4g}" for name, short in SHOWN.items() if name in logs}
        rollout = logs.get("share_rollout")
        if rollout is not None:
            shown["rollout"] = f"{rollout:.0%}"
        self.training_bar.set_postfix(shown, refresh=False)


def show_progress(trainer: Trainer) -> None:
    """Takes the place of transformers' own bar, where the trainer has one."""
    own = [c for c in trainer.callback_handler.callbacks if type(c) is ProgressCallback]
    if own:
        trainer.remove_callback(own[0])
        trainer.add_callback(Progress())
