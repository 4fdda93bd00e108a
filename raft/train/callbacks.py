"""Calls the trainer at points of the training loop that transformers exposes to callbacks only."""

from typing import Protocol

from transformers import TrainerCallback


class HasSteps(Protocol):
    def begin(self) -> None: ...

    def after_optimizer(self) -> None: ...

    def after_step(self) -> None: ...


class StepCallback(TrainerCallback):
    def __init__(self, trainer: HasSteps):
        self.trainer = trainer

    def on_train_begin(self, *args: object, **kwargs: object) -> None:
        self.trainer.begin()

    def on_optimizer_step(self, *args: object, **kwargs: object) -> None:
        self.trainer.after_optimizer()

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        self.trainer.after_step()
