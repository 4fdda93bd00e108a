"""Scores for the choice of a grid point, on items that are not in the test."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from raft.real.evaluate import CHOICE_TOKENS, Model, likelihoods
from raft.real.general import Question
from raft.real.medquad import Item
from raft.real.results import Point, Validation


def validate(folder: str | Path, items: Sequence[Item], questions: Sequence[Question]) -> Validation:
    """Scores of the model in `folder`.

    domain, general: share, in [0, 1], of the pairs of a right and a wrong choice in which the right one has the higher
    mean log p per token. This is finer than the share of right choices among four. (The probability of the right choice
    would be finer still, but it falls when the choices become similar in likelihood, as they do by training on their
    style.) value: harmonic mean of both, as in `studies.microworld.grid`: fine-tuning on a domain should give both.
    """
    model = Model(folder)

    chosen = [item for item in items if item.wrong]
    texts = [(item.question, (item.answer, *item.wrong)) for item in chosen]
    answers = likelihoods(model, texts, "validate: domain", CHOICE_TOKENS)
    domain = statistics.fmean(won for of_one in answers for won in _won(of_one, 0))
    asked = likelihoods(model, [(q.question, q.choices) for q in questions], "validate: general", None)
    general = statistics.fmean(
        won for of_one, q in zip(asked, questions, strict=True) for won in _won(of_one, q.answer)
    )
    return Validation(
        domain=domain,
        general=general,
        value=statistics.harmonic_mean((domain, general)),
        loglik=statistics.fmean(of_one[0] for of_one in answers),
    )


def _won(values: Sequence[float], right: int) -> list[float]:
    """1 for each wrong choice that is less likely than the right one, 0.5 for one that is as likely."""
    wrong = [value for i, value in enumerate(values) if i != right]
    return [float(values[right] > value) + 0.5 * (values[right] == value) for value in wrong]


def best(points: Sequence[Point]) -> Point:
    """The point with the highest value; among equal ones the first, which is cheaper."""
    return max(points, key=lambda point: point["value"])
