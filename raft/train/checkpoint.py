"""Which checkpoints a kill left whole, and the one file that this trainer adds to them.

It is written before the Trainer's own files, and trainer_state.json after all others: with both there, a checkpoint is whole.
"""

import json
import os
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME


def state_name(rank: int, ranks: int) -> str:
    """Name of the file with the balance of the losses, the rollouts in store and the unlogged steps of a rank."""
    return "raft_state.json" if ranks == 1 else f"raft_state_{rank}.json"


def last_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The newest checkpoint in `folder` that was written to its end."""
    found = [path for path in Path(folder).glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
        if read_state(path / TRAINER_STATE_NAME) is not None and any(path.glob("raft_state*.json")):
            return str(path)
    return None


def read_state(path: Path) -> Any:
    """A JSON file; None if it is missing or was cut short."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
