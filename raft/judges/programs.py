"""Judges that are programs, so that a score is free and the same tomorrow.

They know words, not meaning: they see a lost or an invented fact by its words, and a broken text by its form.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from raft.judges.base import Candidate, Judge, Score
from raft.text import content_words, distinct, words


class Program(ABC):
    """A judge that looks at one candidate at a time."""

    name: str
    version: str
    free = True

    def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """One score a candidate."""
        return [Score(self.value(candidate)) for candidate in candidates]

    @abstractmethod
    def value(self, candidate: Candidate) -> float:
        """In [0, 1]."""


class Coverage(Program):
    """Is everything there? The share of the content words of reference and rewriting that the candidate has, mean over
    both."""

    name = "coverage"
    version = "1"

    def value(self, candidate: Candidate) -> float:
        found = content_words(candidate.text)
        shares = [_share(content_words(answer), found) for answer in _answers(candidate)]
        return sum(shares) / len(shares)


class Faithfulness(Program):
    """Is nothing made up? The share of the candidate's content words that question or reference answer has.

    What the model itself made up while it rewrote the answer is no evidence.
    """

    name = "faithfulness"
    version = "2"

    def value(self, candidate: Candidate) -> float:
        known = content_words(candidate.reference) | content_words(candidate.question)
        found = content_words(candidate.text)
        return _share(found, known) if found else 0.0


class Form(Program):
    """Is it a text? A whole sentence, without loops, about as long as the answers: the product of the three."""

    name = "form"
    version = "1"

    def value(self, candidate: Candidate) -> float:
        text, answers = candidate.text, _answers(candidate)
        return _whole(text) * _loopless(text, answers) * _proportion(text, answers)


def default_judges() -> list[Judge]:
    return [Coverage(), Faithfulness(), Form()]


def _answers(candidate: Candidate) -> list[str]:
    """Those that a candidate is made of: the reference, and its rewriting where there is one."""
    return [candidate.reference, *([] if candidate.rewritten is None else [candidate.rewritten])]


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
