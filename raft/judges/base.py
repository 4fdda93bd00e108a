"""What every judge takes and gives."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Protocol

from raft.errors import ConfigError


@dataclass(frozen=True)
class Candidate:
    """A text that is to be judged, and what it is judged by."""

    row_id: str
    question: str
    reference: str
    """The answer of the data."""
    text: str
    rewritten: str | None = None
    """In the refinement: the model's own rewriting of the reference."""


@dataclass(frozen=True, slots=True)
class Score:
    """What one judge says of one candidate."""

    value: float | None
    """In [0, 1]; None where the judge has come to none."""
    reason: str | None = None
    """Why it is this value, for people to read."""
    problem: str | None = None
    """Why there is no value."""
    lasting: bool = True
    """Where there is no value: whether there would be none again. Not so for a lost connection."""
    flag: str | None = None
    """What a person should look at, whatever the value: a text that speaks to its judge."""


class Judge(Protocol):
    name: str
    version: str
    """Another one wherever scores may differ: both are part of the key under which scores are stored."""
    # A judge may also have `free`, true where its scores cost nothing worth saving, and `waits`, true where the time
    # is spent on a server. Without them it is asked only for texts that nothing else speaks against, one judge after
    # the other.

    def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """One score a candidate, in their order.

        A candidate's score depends on that candidate alone. Where `score` raises, the candidates are asked for again
        in smaller parts, and those that raise alone have no value until the next run.
        """


def check_judges(judges: Sequence[Judge]) -> None:
    """ConfigError where there is none, or two have one name."""
    names = [judge.name for judge in judges]
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"judges: expected at least one and a name of its own for each, found {', '.join(names) or 'none'}"
        )


def checked(score: Score) -> Score:
    """`score` where it is usable or says itself that it is not; else one that says what is wrong with it: a judge is
    foreign code."""
    if not isinstance(score, Score):
        return Score(None, problem=f"expected a Score, found {score!r:.80}")
    value = score.value
    if value is None and score.problem:
        return score
    if not isinstance(value, Real) or not 0 <= value <= 1:
        problem = f"expected a number from 0 to 1, found {value!r:.80}"
        return replace(score, value=None, problem=problem)
    return replace(score, value=float(value))
