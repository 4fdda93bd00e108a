"""Which answers a report shows: what other methods forgot and RAFT did not, and where RAFT was wrong."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from raft.evaluate.results import Sample
from raft.report.load import RunData, method_name

RIGHT = 0.5  # an answer counts as right from this score on; checks other than token F1 give 0 or 1


@dataclass(frozen=True)
class Comparison:
    """One item and what each model answered."""

    suite: str
    skill: str | None
    question: str
    expected: str
    answers: dict[str, Sample]  # method -> sample


@dataclass(frozen=True)
class Choice:
    """Some of the items with a property, and how many there are."""

    title: str
    found: int
    of: int
    shown: list[Comparison]


def choose(data: RunData, limit: int = 5) -> list[Choice]:
    """What was forgotten and what was learned; empty where the models needed were not evaluated."""
    pairs = _aligned(data)
    if not pairs:
        return []
    answered = set(pairs[0].answers)
    trained = "raft" if "raft" in answered else [method for method in data.evals if method in answered][-1]
    name = method_name(trained)
    elsewhere = [pair for pair in pairs if pair.suite != "domain"]
    domain = [pair for pair in pairs if pair.suite == "domain"]
    choices = []
    for other in (method for method in data.evals if method in answered - {"base", "raft"}):
        if {"base", "raft"} <= answered:
            lost = method_name(other)
            title = f"{lost} forgot it, {name} did not: base right, {lost} wrong, {name} right"
            choices.append(_choice(title, elsewhere, partial(_forgot, by=other, kept=trained), limit))
    if "base" in answered and trained != "base":
        title = f"{name} forgot it: base right, {name} wrong"
        choices.append(_choice(title, elsewhere, partial(_forgot, by=trained), limit))
    choices.append(_choice(f"Domain questions that {name} got right", domain, lambda right: right[trained], limit))
    choices.append(_choice(f"Domain questions that {name} got wrong", domain, lambda right: not right[trained], limit))
    return [choice for choice in choices if choice.of]


def _forgot(right: dict[str, bool], by: str, kept: str = "base") -> bool:
    """Whether method `by` has lost what the base model knew and `kept` still knows; right: method -> is it right?"""
    return right["base"] and not right[by] and right[kept]


def _choice(title: str, pairs: list[Comparison], wanted: Callable[[dict[str, bool]], bool], limit: int) -> Choice:
    found = [pair for pair in pairs if wanted({m: s["score"] >= RIGHT for m, s in pair.answers.items()})]
    return Choice(title, len(found), len(pairs), _spread(found, limit))


def _spread(pairs: list[Comparison], limit: int) -> list[Comparison]:
    """The first of every skill, then the second of every skill, and so on: a skill with many cases hides no other."""
    turn: dict[tuple[str, str | None], int] = {}
    ranked = []
    for position, pair in enumerate(pairs):
        key = (pair.suite, pair.skill)
        turn[key] = turn.get(key, 0) + 1
        ranked.append((turn[key], position))
    return [pairs[position] for _, position in sorted(ranked)[:limit]]


def _aligned(data: RunData) -> list[Comparison]:
    """Items that every evaluated model answered, in the order of the first model's file."""
    by_method = {method: {(s["suite"], s["id"]): s for s in data.samples(method)} for method in data.evals}
    by_method = {method: samples for method, samples in by_method.items() if samples}
    if not by_method:
        return []
    first = next(iter(by_method.values()))
    shared = [key for key in first if all(key in samples for samples in by_method.values())]
    return [
        Comparison(
            suite=key[0],
            skill=first[key].get("skill"),
            question=str(first[key].get("question", "")),
            expected=str(data.items[key].get("answer") or "") if key in data.items else "",
            answers={method: samples[key] for method, samples in by_method.items()},
        )
        for key in shared
    ]
