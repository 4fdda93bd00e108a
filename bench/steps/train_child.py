"""One provider's training in a process of its own: it trains a turn's steps, hands in what they took, and waits."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from bench.common.turns import Desk
from bench.steps import memory
from bench.steps.providers import make
from bench.steps.setup import Setup
from bench.steps.work import Work, parameter_bytes


def train(desk: Desk, name: str, work: Work, device: str, turn_steps: int, turns: int) -> dict[str, Any]:
    """Trains `turns` turns; gives memory in MiB: the peak since the start, and what all parameters hold."""
    with tempfile.TemporaryDirectory(prefix="raft-bench-") as folder:
        setup = make(name, work, device, Path(folder), turn_steps * turns)
        setup.trainer.add_callback(Steps(desk, setup, turn_steps))
        desk.ready(
            {
                "generation": setup.generation,
                "weights": setup.weights,
                "objective": setup.objective,
                "parameters": setup.model.num_parameters(),
                "student_mib": parameter_bytes(setup.model) / 2**20,
                "threads": torch.get_num_threads(),
            }
        )
        setup.trainer.train()
        return {"peak_mib": memory.peak_mib(device), "parameter_mib": memory.parameter_mib()}


class Steps(TrainerCallback):
    """Times whole steps, from one log to the next, with all that a trainer does between two optimizer steps."""

    def __init__(self, desk: Desk, setup: Setup, turn_steps: int):
        self._desk, self._setup, self._turn_steps = desk, setup, turn_steps
        self._taken: list[dict[str, Any]] = []
        self._mark = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._desk.go()
        self._begin()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:  # the line at the end of a training
            return
        step = {
            "seconds": self._setup.watch.now() - self._mark,
            "parts": dict(self._setup.seconds()),
            "tokens": self._setup.tokens.take(),
            "loss": logs["loss"],
        }
        self._taken.append(step)
        if state.global_step % self._turn_steps == 0:
            taken, self._taken = self._taken, []
            self._desk.hand_in(taken)
            if state.global_step < state.max_steps:
                memory.trim()  # the children that wait would together hold more than a machine has
                self._desk.go()
        self._begin()

    def _begin(self) -> None:
        self._mark = self._setup.watch.now()
