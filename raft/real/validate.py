"""The choice between the points of a grid, on rows that are not trained and questions that are not tested."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raft.real.evaluate import CHOICE_TOKENS, Model, likelihoods
from raft.real.general import Question
from raft.real.medquad import Item


def validate(folder: str | Path, items: Sequence[Item], questions: Sequence[Question]) -> dict[str, float]:
    """{"domain", "general", "value"} of the model in `folder`, each in [0, 1].

    domain and general: the probability of the right one among the choices, by the mean log p of a token; smoother than
    the share of right choices, which steps by 1 / 60. value: their harmonic mean, as in `raft.demo.grid`: who fine-tunes
    on a domain wants both.
    """
    model = Model(folder)

    def right(asked: Sequence[tuple[str, Sequence[str], int]], label: str, limit: int | None) -> float:
        found = likelihoods(model, [(question, texts) for question, texts, _ in asked], f"validate: {label}", limit)
        # A text without tokens has no likelihood, and is not chosen.
        values = [[-math.inf if value is None else value for value in of_one] for of_one in found]
        return statistics.fmean(_share(of_one, answer) for of_one, (_, _, answer) in zip(values, asked, strict=True))

    domain = right([(i.question, (i.answer, *i.wrong), 0) for i in items if i.wrong], "domain", CHOICE_TOKENS)
    general = right([(q.question, q.choices, q.answer) for q in questions], "general", None)
    return {"domain": domain, "general": general, "value": statistics.harmonic_mean((domain, general))}


def _share(values: Sequence[float], right: int) -> float:
    """softmax(values)[right]"""
    return 1 / sum(math.exp(value - values[right]) for value in values)


def best(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The point of the highest value; of equal ones the first, which is the cheaper."""
    return max(points, key=lambda point: point["value"])
