"""Which checkpoints are complete, and the two files that this trainer adds to them.

raft_state.json is written before the Trainer's own files. raft_files.json is written after all others: it lists sizes
and hashes, so that a missing, truncated or zeroed file is detected. A checkpoint without this list (the process was
killed before it was written, or an earlier version wrote the checkpoint) is complete if it has trainer_state.json,
which the Trainer writes last.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from raft.models.fingerprint import file_fingerprint
from raft.runs import write_json

logger = logging.getLogger(__name__)

FILES = "raft_files.json"


def state_name(rank: int, ranks: int) -> str:
    """Name of a rank's file with the moving averages, the rollouts not yet trained on and the sums not yet logged."""
    return "raft_state.json" if ranks == 1 else f"raft_state_{rank}.json"


def last_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The newest complete checkpoint in `folder`, None if there is none. Warns for each newer one that is damaged."""
    found = [path for path in Path(folder).glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    passed: list[str] = []
    for path in sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
        reason = damage(path)
        if reason is None:
            for line in passed:
                logger.warning("%s; going on from %s", line, path.name)
            return str(path)
        passed.append(f"{path} is damaged: {reason}")
    for line in passed:
        logger.warning("%s; no older one is whole", line)
    return None


def damage(checkpoint: Path) -> str | None:
    """Why training cannot resume exactly from this checkpoint; None if its files show no reason."""
    if (checkpoint / FILES).exists():
        files = read_state(checkpoint / FILES)
        if not isinstance(files, dict):
            return f"{FILES} is not readable"
        for name, (size, digest) in files.items():
            file = checkpoint / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes, expected {size}"
            if file_fingerprint(file) != digest:
                return f"{name} has other content than was written"
    if read_state(checkpoint / TRAINER_STATE_NAME) is None:
        return f"{TRAINER_STATE_NAME} is missing or cut short"
    if not any(checkpoint.glob("raft_state*.json")):
        return "raft_state.json is missing"
    names = [part.name for part in checkpoint.iterdir()]
    # Without these files transformers would silently start fresh ones. DeepSpeed keeps both in global_stepN.
    if not any(name.startswith("global_step") for name in names):
        for part in ("optimizer", "scheduler"):
            if not any(name.startswith(part) for name in names):
                return f"the state of the {part} is missing"
    return None


def list_files(checkpoint: Path) -> None:
    """Writes the list of all files of a complete checkpoint."""
    files = [file for file in sorted(checkpoint.rglob("*")) if file.is_file() and file.name != FILES]
    listed = {str(file.relative_to(checkpoint)): [file.stat().st_size, file_fingerprint(file)] for file in files}
    write_json(checkpoint / FILES, listed)


def read_state(path: Path) -> Any:
    """The content of a JSON file; None if it is missing or truncated."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
