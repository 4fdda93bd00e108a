"""All that is asked of a model, read and checked before any of it is asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft.real.files import data_folder
from raft.real.general import Question, ifeval_functions, read_arc, read_ifeval
from raft.real.medquad import MedQuAD, read_medquad


@dataclass(frozen=True)
class Data:
    folder: Path
    seed: int  # of what was drawn
    medquad: MedQuAD
    arc: list[Question]
    arc_validation: list[Question]  # others, to choose by
    ifeval: list[dict[str, Any]]


def read_data(
    folder: str | Path | None = None,
    *,
    seed: int = 0,
    train: int = 300,
    validation: int = 75,
    arc: int = 300,
    arc_validation: int = 150,
    ifeval: int = 100,
) -> Data:
    """The rows of all parts, drawn by `seed`, out of `folder` or the one that `RAFT_DATA_DIR` names.

    ConfigError, in one line, for a missing folder, file or package; InputError for a wrong row.
    """
    path = data_folder(folder)
    questions = read_arc(path, seed=seed, n=arc + arc_validation)
    data = Data(
        folder=path,
        seed=seed,
        medquad=read_medquad(path, seed=seed, train=train, validation=validation),
        arc=questions[:arc],
        arc_validation=questions[arc:],
        ifeval=read_ifeval(path, seed=seed, n=ifeval),
    )
    ifeval_functions(path)
    return data
