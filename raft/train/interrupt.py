"""On Ctrl-C and SIGTERM during training: finish the step, save a checkpoint, stop."""

import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from raft.errors import Interrupted


class StopAtStepEnd(TrainerCallback):
    """Within this context the first signal ends training after the current step, with a checkpoint.

    A second signal stops at once; the last periodic checkpoint remains. On exit, raises `Interrupted` after a signal.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None and self.signum is not None:
            raise self._interrupted()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise self._interrupted()
        self.signum = signum
        print("raft: stopping after this step; once more stops at once", file=sys.stderr)

    def _interrupted(self) -> Interrupted:
        assert self.signum is not None
        name = "Ctrl-C" if self.signum == signal.SIGINT else signal.Signals(self.signum).name
        return Interrupted(
            f"stopped by {name}; the same command with --resume goes on from the last checkpoint", self.signum
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        if args.world_size > 1:
            # A signal reaches the ranks at different times, but all must stop after the same step.
            seen = torch.tensor(self.signum or 0, device=args.device)
            torch.distributed.all_reduce(seen, torch.distributed.ReduceOp.MAX)
            self.signum = int(seen.item()) or None
        if self.signum is not None:
            control.should_training_stop = True
            control.should_save = True
        return control
