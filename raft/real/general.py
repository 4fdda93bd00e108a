"""Tests of general skills: science questions (ARC-Easy, by likelihood) and instructions about form (IFEval)."""

import importlib
import importlib.util
import os
import random
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TypedDict

from raft.errors import ConfigError, InputError
from raft.real.files import draw, read_file
from raft.real.results import Followed

ARC_FILE, ARC_TASK = "mc_commonsense.jsonl", "arc-easy"
IFEVAL_FILE = "ifeval.jsonl"
IFEVAL_PACKAGES = ("lm_eval", "nltk", "langdetect", "immutabledict")


class ArcLine(TypedDict):
    """A line of ARC_FILE, which holds other tasks too."""

    id: str
    task: str
    question: str
    choices: list[str]
    answer: int  # index of the right choice


class Instructions(TypedDict):
    """A prompt of IFEval."""

    key: int
    prompt: str
    instruction_id_list: list[str]  # names of the instructions in it
    kwargs: list[dict[str, object]]  # arguments of each


@dataclass(frozen=True)
class Question:
    """A question of ARC-Easy."""

    id: str
    question: str
    choices: tuple[str, ...]  # three to five
    answer: int  # index of the right choice


def read_arc(folder: Path, *, seed: int, n: int = 300) -> list[Question]:
    """`n` questions of ARC-Easy, drawn by `seed`."""
    rows = [row for row in read_file(folder, ARC_FILE, ArcLine) if row["task"].lower() == ARC_TASK]
    for row in rows:
        if not 0 <= row["answer"] < len(row["choices"]):
            where = f"{folder / ARC_FILE}, {row['id']}"
            raise InputError(f"{where}: answer {row['answer']} is no index of its {len(row['choices'])} choices")
    drawn = draw(random.Random(seed), rows, n, "ARC-Easy questions")
    return [Question(row["id"], row["question"], tuple(row["choices"]), row["answer"]) for row in drawn]


def read_ifeval(folder: Path, *, seed: int, n: int = 100) -> list[Instructions]:
    """`n` prompts of IFEval with their instructions, drawn by `seed`."""
    return draw(random.Random(seed), read_file(folder, IFEVAL_FILE, Instructions), n, "IFEval prompts")


def ifeval_functions(folder: Path) -> ModuleType:
    """lm-eval's scoring functions. Sets NLTK_DATA to the folder's nltk_data, unless it is set.

    ConfigError if a package or nltk's data is missing.
    """
    for package in IFEVAL_PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"IFEval: needs the package {package}, expected lm-eval[ifeval]: pip install 'lm-eval[ifeval]'"
            )
    # Without NLTK_DATA, lm-eval's import would download nltk's sentence splitter.
    os.environ.setdefault("NLTK_DATA", str(folder / "nltk_data"))
    import nltk

    path = os.environ["NLTK_DATA"]
    if path not in nltk.data.path:  # nltk was imported earlier and does not read NLTK_DATA again
        nltk.data.path.insert(0, path)
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError as error:
        raise ConfigError(
            f"{path}: has no tokenizers/punkt_tab, which IFEval needs; name a folder that has it in NLTK_DATA"
        ) from error
    # langdetect draws random numbers: without a fixed seed, an answer's score could differ between two runs.
    importlib.import_module("langdetect").DetectorFactory.seed = 0
    return importlib.import_module("lm_eval.tasks.ifeval.utils")


def score_ifeval(functions: ModuleType, item: Instructions, response: str) -> Followed:
    """Whether the response follows each instruction of the prompt, by lm-eval's rules."""
    asked = SimpleNamespace(**item)
    # lm-eval draws the missing arguments of instructions. The seed makes both rules draw the same.
    state = random.getstate()
    try:
        random.seed(item["key"])
        strict = functions.test_instruction_following_strict(asked, response)
        random.seed(item["key"])
        loose = functions.test_instruction_following_loose(asked, response)
    finally:
        random.setstate(state)
    return {"strict": list(strict.follow_instruction_list), "loose": list(loose.follow_instruction_list)}
