"""The trainer's own state in a checkpoint, so that a resumed run computes exactly the same numbers."""

import logging
import os
from pathlib import Path
from typing import NotRequired, TypedDict

from raft.errors import RunFolderError
from raft.runs import write_json
from raft.train.balance import Balance, BalanceState
from raft.train.checkpoint import FILES, damage, last_checkpoint, read_state, state_name
from raft.train.config import RAFTConfig
from raft.train.recorder import Recorder
from raft.train.records import Window, WindowState
from raft.train.rollout import RolloutQueue, SavedRow

logger = logging.getLogger(__name__)


class SavedState(TypedDict):
    """The content of raft_state.json. Earlier versions wrote neither `averages` nor `rendered`."""

    balance: BalanceState
    averages: NotRequired[str]  # of what its moving averages are: "losses" or "gradients"
    rollouts: list[list[SavedRow]]  # by micro-batch
    window: WindowState
    rendered: NotRequired[str | None]  # `raft.train.data.digest` of the rendered rows


class ResumableState:
    """Moving averages, rollouts not yet trained on, and sums of steps not yet logged."""

    def __init__(self, args: RAFTConfig, balance: Balance, queue: RolloutQueue, recorder: Recorder, digest: str | None):
        """digest: `raft.train.data.digest` of the rendered rows."""
        self._args, self._balance, self._queue, self._recorder, self._digest = args, balance, queue, recorder, digest
        self._averages = "gradients" if args.balances_gradients else "losses"

    @property
    def _name(self) -> str:
        return state_name(self._args.process_index, self._args.world_size)

    def write(self, checkpoint: Path) -> None:
        """Writes this rank's state. To be called before the Trainer writes its files and removes older checkpoints."""
        state: SavedState = {
            "balance": self._balance.state_dict(),
            "averages": self._averages,
            "rollouts": self._queue.state_dict(),
            "window": self._recorder.state_dict(),
            "rendered": self._digest,
        }
        if self._args.should_save:
            (checkpoint / FILES).unlink(missing_ok=True)  # the old list, if a damaged checkpoint is written again
        write_json(checkpoint / self._name, state)

    def resume(self, wanted: str | os.PathLike[str] | bool | None) -> str | None:
        """Loads the state of a checkpoint and returns its path. RunFolderError if there is none or it is damaged.

        wanted: a path, or True for the last complete checkpoint; None or False sets the state before the first step.
        """
        checkpoint: str | None = None
        if isinstance(wanted, (str, os.PathLike)):
            checkpoint = os.fspath(wanted)
        elif wanted:
            checkpoint = last_checkpoint(self._args.output_dir)
            if checkpoint is None:
                raise RunFolderError(f"{self._args.output_dir}: no whole checkpoint to resume from")
        self._restore(checkpoint)
        if checkpoint is not None and (reason := damage(Path(checkpoint))) is not None:
            raise RunFolderError(f"{checkpoint}: is damaged: {reason}; resume from another checkpoint")
        return checkpoint

    def _restore(self, checkpoint: str | None) -> None:
        """Loads the state of a checkpoint; None: that before the first step. RunFolderError if it does not fit."""
        fresh: SavedState = {
            "balance": {"sft": 0.0, "kl": 0.0, "steps": 0.0, "lambda": 0.0},
            "rollouts": [],
            "window": Window().state_dict({}),
        }
        state: SavedState | None = fresh if checkpoint is None else read_state(Path(checkpoint, self._name))
        if state is None:
            raise RunFolderError(f"{checkpoint}: expected {self._name}, which every checkpoint of this trainer has")
        averages = state.get("averages", "losses")
        if state["balance"]["steps"] and averages != self._averages and self._balance.fixed is None:
            raise RunFolderError(
                f"{checkpoint}: its lambda follows averages of {averages}, not of {self._averages} as balance: "
                f"{self._args.balance} does; expected the setting that it was made with"
            )
        if state.get("rendered", self._digest) != self._digest:
            logger.warning(
                "%s: the rows are rendered to other tokens than when this checkpoint was made: expected the same rows, "
                "tokenizer and chat template; one that writes today's date does so",
                checkpoint,
            )
        self._balance.load_state_dict(state["balance"])
        self._queue.load_state_dict(state["rollouts"])
        try:
            self._recorder.window.load_state_dict(state["window"])
        except KeyError as error:
            raise RunFolderError(
                f"{checkpoint}: written by another version of raft-distill, cannot be resumed"
            ) from error
