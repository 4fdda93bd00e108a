"""The domain: medical questions (MedQuAD). The test asks trained questions in other words, and untrained ones."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from raft.errors import ConfigError, InputError
from raft.real.files import draw, read_file
from raft.real.rephrase import rephrase
from raft.rows import Row, normalize_rows

FILE = "domain_medical_medquad.jsonl"
WRONG = 3  # wrong answers of an item


class Entry(TypedDict):
    """A line of the file."""

    id: str  # not unique
    source: str  # what collection the question is of
    focus: str  # the topic, such as a disease
    qtype: str  # what is asked of it, such as "treatment"
    question: str
    answer: str
    split: str  # "train" or "test"


@dataclass(frozen=True)
class Item:
    """A question for a free answer and for a choice among answers."""

    id: str
    question: str
    answer: str  # the reference
    wrong: tuple[str, ...]  # answers to the same type of question about other topics; empty if the data has too few


@dataclass(frozen=True)
class MedQuAD:
    train: list[Row]
    validation: list[Item]  # some trained rows, rephrased, for the choice of a grid point
    rephrased: list[Item]  # the other trained rows, rephrased
    unseen: list[Item]  # all rows of the test split, which shares no disease with the training split
    not_rephrased: int  # trained rows whose question has no known pattern


def read_medquad(folder: Path, *, seed: int, train: int = 300, validation: int = 75) -> MedQuAD:
    """Draw the rows by `seed`. ConfigError for a missing file or too few rows, InputError for an invalid row."""
    rows = _with_ids(read_file(folder, FILE, Entry))
    learnable = [row for row in rows if row["split"] == "train"]
    trained = draw(random.Random(seed), learnable, train, "training rows")
    if len({row["question"] for row in trained}) < train:
        raise InputError(f"{folder / FILE}: a question is there twice in the training split, expected each once")
    others = [(row, other) for row in trained if (other := rephrase(row["question"])) is not None]
    items = [_item(row, question, trained, seed) for row, question in others]
    if not 0 <= validation < len(items):
        raise ConfigError(f"rows to choose by: expected 0 to {len(items) - 1} of {len(items)}, found {validation}")
    unseen = [row for row in rows if row["split"] == "test"]
    return MedQuAD(
        train=normalize_rows(trained, FILE),
        validation=items[:validation],
        rephrased=items[validation:],
        unseen=[_item(row, row["question"], unseen, seed) for row in unseen],
        not_rephrased=len(trained) - len(others),
    )


def _with_ids(rows: Sequence[Entry]) -> list[Entry]:
    """Each row with a unique id: source/id, and behind it #2, #3, ... for further rows with the same one."""
    seen: dict[str, int] = {}
    result: list[Entry] = []
    for row in rows:
        name = f"{row['source']}/{row['id']}"
        seen[name] = seen.get(name, 0) + 1
        result.append({**row, "id": name if seen[name] == 1 else f"{name}#{seen[name]}"})
    return result


def _item(row: Entry, question: str, pool: Sequence[Entry], seed: int) -> Item:
    """Right and wrong answers come from the same pool, all trained or all untrained, so that training favours none."""
    about = row["focus"].casefold()
    answers = {
        other["answer"]: None  # a dict, because a set would not keep the order
        for other in pool
        if other["qtype"] == row["qtype"]
        and not _same_topic(other["focus"].casefold(), about)
        and other["answer"] != row["answer"]
    }
    rng = random.Random(f"{seed}:{row['id']}")
    wrong = tuple(rng.sample(list(answers), WRONG)) if len(answers) >= WRONG else ()
    return Item(row["id"], question, row["answer"], wrong)


def _same_topic(a: str, b: str) -> bool:
    """Whether one topic contains the other, such as a brochure's title or a subtype of the disease."""
    return a in b or b in a
