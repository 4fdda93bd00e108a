"""What a command works with: all that it reads of files and settings, read and checked once, then handed on."""

from collections.abc import Sequence
from dataclasses import dataclass

from raft.rows import Row
from raft.runs import Run
from raft.settings.schema import Config


@dataclass(frozen=True)
class Plan:
    """Of `raft refine` and `raft eval`; `raft.train.training.TrainingPlan` adds what training needs."""

    config: Config
    run: Run
    model: str
    """Folder of the model, or its name on the Hub. Of an evaluation: the model that answers."""
    data: str
    """The file or folder that the rows come from."""
    rows: Sequence[Row]
