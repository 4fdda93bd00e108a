"""All rows and items of `raft real`, read and checked before a model is asked."""

from dataclasses import dataclass
from pathlib import Path

from raft.real.files import data_folder
from raft.real.general import Instructions, Question, ifeval_functions, read_arc, read_ifeval
from raft.real.medquad import MedQuAD, read_medquad


@dataclass(frozen=True)
class Data:
    folder: Path
    seed: int  # that drew the rows and items
    medquad: MedQuAD
    arc: list[Question]
    arc_validation: list[Question]  # further questions, for the choice of a grid point
    ifeval: list[Instructions]


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
    """Draw the rows and items of all parts, by `seed`, from `folder` or the one that `RAFT_DATA_DIR` names.

    ConfigError, in one line, for a missing folder, file or package; InputError for an invalid row.
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
