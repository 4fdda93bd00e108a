"""Judges of fused candidates: anything with a name and a score in [0, 1].

The three here are programs, so a score is free and the same tomorrow. They know words, not meaning: they see a lost or an
invented fact by its words, and a broken text by its form.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol

from raft.errors import ConfigError
from raft.refine.generate import RUN_ERRORS, reason
from raft.refine.store import Store, row_key
from raft.refine.text import content_words, distinct, words

log = logging.getLogger(__name__)


class Judge(Protocol):
    """A judge may also have a `version` (text), which tells its scores from those of its earlier self in the cache."""

    name: str

    def score(self, row: Mapping[str, Any], candidate: str) -> float:
        """In [0, 1]. `row` is the row with its "rewritten" answer beside "question" and "answer"."""


class Coverage:
    """Is everything there? The share of the content words of each answer that the candidate has, mean over both."""

    name = "coverage"
    version = "1"

    def score(self, row: Mapping[str, Any], candidate: str) -> float:
        found = content_words(candidate)
        return (_share(content_words(row["answer"]), found) + _share(content_words(row["rewritten"]), found)) / 2


class Faithfulness:
    """Is nothing made up? The share of the candidate's content words that question or reference answer has.

    What the model itself made up while it rewrote the answer is no evidence.
    """

    name = "faithfulness"
    version = "2"

    def score(self, row: Mapping[str, Any], candidate: str) -> float:
        known = content_words(row["answer"]) | content_words(row["question"])
        found = content_words(candidate)
        return _share(found, known) if found else 0.0


class Form:
    """Is it a text? A whole sentence, without loops, about as long as the answers: the product of the three."""

    name = "form"
    version = "1"

    def score(self, row: Mapping[str, Any], candidate: str) -> float:
        answers = [row["answer"], row["rewritten"]]
        return _whole(candidate) * _loopless(candidate, answers) * _proportion(candidate, answers)


def default_judges() -> list[Judge]:
    return [Coverage(), Faithfulness(), Form()]


def check_judges(judges: Sequence[Judge]) -> None:
    names = [judge.name for judge in judges]
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"judges: expected at least one and a name of its own for each, found {', '.join(names) or 'none'}"
        )


@dataclass(frozen=True)
class Verdict:
    scores: list[float]  # in the order of the judges; 0 where a score was unusable
    unusable: dict[str, str]  # name of the judge -> why

    @property
    def mean(self) -> float:
        return math.fsum(self.scores) / len(self.scores)


@dataclass
class Panel:
    """All judges over all candidates, with a line in the store for every candidate."""

    judges: Sequence[Judge]
    store: Store
    unusable: Counter[str] = field(default_factory=Counter)  # name of the judge -> scores that counted as 0

    def judge(self, row: Mapping[str, Any], candidate: str, round: int) -> Verdict:
        """An unusable score (raised, no number, outside [0, 1]) counts as a reject, which is 0, and is reported."""
        versions = [[judge.name, getattr(judge, "version", "")] for judge in self.judges]
        key = row_key("judges", {"judges": versions}, [row["question"], row["answer"], row["rewritten"], candidate])
        line = self.store.get(row["id"], key)
        if line is None:
            scores, unusable, lasting = {}, {}, True
            for judge in self.judges:
                scores[judge.name], why, raised = _score(judge, row, candidate)
                lasting = lasting and not raised
                if why:
                    unusable[judge.name] = why
                    if judge.name not in self.unusable:
                        log.warning("judge %s: unusable score for row %s counts as 0: %s", judge.name, row["id"], why)
            line = {"id": row["id"], "key": key, "round": round, "scores": scores, "unusable": unusable}
            if lasting:  # what was raised, a lost connection say, may go well after a restart
                self.store.add(line)
        self.unusable.update(line["unusable"].keys())
        return Verdict([line["scores"][judge.name] for judge in self.judges], line["unusable"])


def _score(judge: Judge, row: Mapping[str, Any], candidate: str) -> tuple[float, str | None, bool]:
    """Score, why it is unusable, and whether the judge raised."""
    try:
        score = judge.score(row, candidate)
    except RUN_ERRORS:
        raise
    except Exception as error:  # noqa: BLE001  # a judge is foreign code
        return 0.0, reason(error), True
    if not isinstance(score, Real) or not 0 <= score <= 1:
        return 0.0, f"expected a number from 0 to 1, found {score!r:.80}", False
    return float(score), None, False


def _share(wanted: set[str], found: set[str]) -> float:
    return len(wanted & found) / len(wanted) if wanted else 1.0


def _whole(text: str) -> float:
    """1 with the start and the end of a sentence, 1/2 with one of them. Scripts without capitals start as they like."""
    text = text.strip()
    first = next((c for c in text if c.isalnum()), "")
    starts = bool(first) and not first.islower()
    ends = text.rstrip("\"'”’»)]*").endswith((".", "!", "?", "…", "。", "！", "？"))
    return (starts + ends) / 2


def _loopless(text: str, answers: Sequence[str]) -> float:
    """Share of distinct trigrams, against 0.8 or what the answers have themselves: "ha ha ha ha" may be the answer."""
    return min(1.0, distinct(words(text)) / min(0.8, *(distinct(words(answer)) for answer in answers)))


def _proportion(text: str, answers: Sequence[str]) -> float:
    """1 from half the shorter answer to twice the longer one, in words; falls off with the ratio outside."""
    length = len(words(text))
    lengths = [max(len(words(answer)), 1) for answer in answers]
    return min(1.0, length / (min(lengths) / 2), 2 * max(lengths) / max(length, 1))
