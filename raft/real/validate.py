"""The choice between the points of a grid, on items that are not tested."""

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

    domain and general, in [0, 1]: how often the right one of two choices is likelier, by the mean log p of a token; over
    all pairs of a right and a wrong choice, so finer than the share of right choices of four. (The probability of the
    right one would be finer still, but it falls wherever answers become alike in likelihood, which training on their
    style does by itself.) value: their harmonic mean, as in `studies.microworld.grid`: who fine-tunes on a domain wants both.
    loglik: of the right answers of the domain, in nats a token.
    """
    model = Model(folder)

    def choices(asked: Sequence[tuple[str, Sequence[str]]], label: str, limit: int | None) -> list[list[float]]:
        found = likelihoods(model, asked, f"validate: {label}", limit)
        # A text without tokens has no likelihood, and is not chosen.
        return [[-math.inf if value is None else value for value in of_one] for of_one in found]

    chosen = [item for item in items if item.wrong]
    answers = choices([(item.question, (item.answer, *item.wrong)) for item in chosen], "domain", CHOICE_TOKENS)
    domain = statistics.fmean(won for of_one in answers for won in _won(of_one, 0))
    asked = choices([(question.question, question.choices) for question in questions], "general", None)
    general = statistics.fmean(
        won for of_one, q in zip(asked, questions, strict=True) for won in _won(of_one, q.answer)
    )
    return {
        "domain": domain,
        "general": general,
        "value": statistics.harmonic_mean((domain, general)),
        "loglik": statistics.fmean(of_one[0] for of_one in answers),
    }


def _won(values: Sequence[float], right: int) -> list[float]:
    """1 for each wrong choice that is less likely than the right one, 0.5 for one that is as likely."""
    wrong = [value for i, value in enumerate(values) if i != right]
    return [float(values[right] > value) + 0.5 * (values[right] == value) for value in wrong]


def best(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The point of the highest value; of equal ones the first, which is the cheaper."""
    return max(points, key=lambda point: point["value"])
