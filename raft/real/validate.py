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
    """{"domain", "general", "value", "loglik"} of the model in `folder`.

    domain and general, in [0, 1]: the probability of the right one among the choices, by the mean log p of a token;
    smoother than the share of right choices, which steps by one in a hundred. value: their harmonic mean, as in
    `raft.demo.grid`: who fine-tunes on a domain wants both. loglik: of the right answers of the domain, in nats a token.
    """
    model = Model(folder)

    def choices(asked: Sequence[tuple[str, Sequence[str]]], label: str, limit: int | None) -> list[list[float]]:
        found = likelihoods(model, asked, f"validate: {label}", limit)
        # A text without tokens has no likelihood, and is not chosen.
        return [[-math.inf if value is None else value for value in of_one] for of_one in found]

    chosen = [item for item in items if item.wrong]
    answers = choices([(item.question, (item.answer, *item.wrong)) for item in chosen], "domain", CHOICE_TOKENS)
    domain = statistics.fmean(_share(of_one, 0) for of_one in answers)
    asked = choices([(question.question, question.choices) for question in questions], "general", None)
    general = statistics.fmean(_share(of_one, q.answer) for of_one, q in zip(asked, questions, strict=True))
    return {
        "domain": domain,
        "general": general,
        "value": statistics.harmonic_mean((domain, general)),
        "loglik": statistics.fmean(of_one[0] for of_one in answers),
    }


def _share(values: Sequence[float], right: int) -> float:
    """softmax(values)[right]"""
    return 1 / sum(math.exp(value - values[right]) for value in values)


def best(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The point of the highest value; of equal ones the first, which is the cheaper."""
    return max(points, key=lambda point: point["value"])
