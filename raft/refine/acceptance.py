"""The floor under rewritings and fused candidates: what a text has to pass to take the place of a reference answer.

The judges say which candidate is best; the floor says whether any is good enough. Whatever a program can see that makes
a text worse than its reference is a reason to keep the reference, as Eq. 3 does for rows that the filter rejects. All
checks are against question and reference alone, never against the model's own rewriting, and know English.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from raft.judges import Score, mean
from raft.prompts import Wording
from raft.refine.facts import (
    amount_words,
    asserted,
    hedges,
    in_order,
    missing_numbers,
    names,
    negations,
    numbers,
    unmatched,
)
from raft.rows import Row
from raft.settings import RefineSettings
from raft.text import content_words, distinct, ngrams, words

# Reason -> what it says of a text, as the report shows it.
REASONS = {
    "similarity": "its cosine to the reference is below tau",
    "score": "the mean score of the judges is below min_score",
    "numbers lost": "numbers, units, dates or codes of the reference are missing",
    "numbers invented": "it has numbers that neither question nor reference has",
    "numbers moved": "its numbers do not come in the order of the reference",
    "negation lost": "something that the reference denies is not denied",
    "negation invented": "it denies what the reference does not deny",
    "hedge lost": "what the reference says of some or with a perhaps it says of all or for sure",
    "words invented": "content words that no one sentence of the reference has, nor the question, or a name that "
    "neither has",
    "words lost": "a sentence lacks content words of the sentence of the reference that it says",
    "echo": "it repeats or talks about the prompt, or names a speaker",
    "refusal": "it refuses or apologises",
    "loop": "it repeats itself",
    "length": "it is less than half or more than twice as long as the reference",
    "margin": "the judges do not score it above the reference by the margin",
}
_PUT_BACK = ("numbers lost", "negation lost", "hedge lost", "words lost")  # by the fusion
_ECHO_WORDS = 5  # in a row that prompt and text share, and the reference has not
_ABOUT_THE_TASK = re.compile(
    r"\b(?:first|second|third|reference|original|rewritten|revised|reworded|fused|final|provided|above|given) "
    r"(?:answers?|versions?|texts?|sentences?|passages?|responses?)\b"
    r"|\b(?:rewritten|rephrased|paraphrased|reworded)\b|\bin (?:my|your) own words\b"
    r"|\bhere(?:['’]s| is| are) (?:a|an|the|my|your)\b",
    re.IGNORECASE,
)
_SPEAKER = re.compile(
    r"^[^\w\n]*(?:(a|q|answer|question|response|reply|output|assistant|user|ai|bot)[*_ \t]*:"
    r"|(assistant|user)[^\w\n]*$)",
    re.IGNORECASE | re.MULTILINE,
)
_REFUSAL = re.compile(
    r"\b(?:i['’]?m|i am) (?:sorry|unable|not able)"
    r"|\bi (?:can(?:no|['’])t|can not|apologi[sz]e|do(?:n['’]t| not) have (?:access|enough|any))"
    r"|\bas an ai\b|\blanguage model\b|\bplease (?:provide|consult|note that i)",
    re.IGNORECASE,
)
_DRAFT_NEW_WORDS = 0.1  # share of a rewriting's content words that may be new at least
_LOOP_SHARE = 0.75  # of distinct trigrams, of the reference's own share at most
_SENTENCE = re.compile(r"[.!?]+\s+|\n+")
_PART = re.compile(r"(?<=[.!?])\s+|\n+|\s[-–•]\s")
_FEW_WORDS = 4  # of difference in length that is no reason


@dataclass(frozen=True)
class Acceptance:
    """What a text must pass under one wording of the prompts and one set of settings."""

    wording: Wording
    settings: RefineSettings

    def problems(self, row: Row, text: str, *, similarity: float, draft: bool = False) -> list[str]:
        """What speaks against a text before it is judged: keys of REASONS, in their order; none: the text passes.

        similarity: the cosine of `text` and the reference. draft: a rewriting, which may lack what the fusion with the
        reference puts back.
        """
        question, reference = row["question"], row["answer"]
        found = {
            "similarity": not similarity >= self.settings.tau,  # also where it is NaN
            "echo": self._echoes(question, reference, text),
            "refusal": _new(_REFUSAL, text, reference),
            "loop": _loops(text, reference),
            "length": not _in_proportion(text, reference, shorter=draft),
            **_facts(question, reference, text),
            "words invented": _invents(question, reference, text, self.settings.max_new_words, draft=draft),
            "words lost": _loses(question, reference, text, self.settings.max_lost_words),
        }
        return [reason for reason in REASONS if found.get(reason) and not (draft and reason in _PUT_BACK)]

    def with_score(self, problems: list[str], scores: Sequence[Score]) -> list[str]:
        """`problems`, and "score" where the judges are against the text. scores: none where it was not judged."""
        low = bool(scores) and (mean(scores) < self.settings.min_score or mean(scores) == 0)  # 0: all rejected it
        return [reason for reason in REASONS if reason in problems or (low and reason == "score")]

    def _echoes(self, question: str, reference: str, text: str) -> bool:
        if _new(_ABOUT_THE_TASK, text, reference) or _new(_SPEAKER, text, reference):
            return True
        given = words(text)
        asked = words(question)
        if asked and given[: len(asked)] == asked and words(reference)[: len(asked)] != asked:
            return True
        grams = ngrams(given, _ECHO_WORDS).keys() - ngrams(words(reference), _ECHO_WORDS).keys()
        if grams & ngrams(words(self.wording.instructions), _ECHO_WORDS).keys():
            return True
        lines = [line.strip().lower() for line in text.splitlines()]
        return any(line.startswith(label.lower()) for line in lines for label in self.wording.labels)


def _new(pattern: re.Pattern[str], text: str, reference: str) -> bool:
    """Whether the text says what the reference does not."""
    known, said = ({match[match.lastindex or 0].lower() for match in pattern.finditer(t)} for t in (reference, text))
    return bool(said - known)


def _facts(question: str, reference: str, text: str) -> dict[str, bool]:
    asked, wanted, given = numbers(question), numbers(reference), numbers(text)
    denied, denies = negations(reference), negations(text)
    return {
        # What the question says already need not be said again.
        "numbers lost": bool(missing_numbers(missing_numbers(wanted, asked), given)),
        "numbers invented": bool(missing_numbers(given, [*wanted, *asked])),
        "numbers moved": not in_order(given, wanted),
        "negation lost": unmatched(denied, denies) > 0 or bool(asserted(reference, denied, text, denies)),
        "negation invented": unmatched(denies, denied + negations(question)) > 0,
        "hedge lost": unmatched(hedges(reference), hedges(text)) > 0,
    }


def _invents(question: str, reference: str, text: str, most: float, *, draft: bool) -> bool:
    """most: the share of content words that may be new. Sentence by sentence, for a wrong statement can be made of the
    reference's own words, out of two of its sentences. A draft, whose wording the fusion takes over in part, is held
    against the whole reference, and twice the share may be new, a tenth at least."""
    spelled = set(words(question)) | set(words(reference))
    if {part for name in names(text) for part in words(name)} - spelled:
        return True
    asked = content_words(question)
    known = [asked | content_words(part) for part in ([reference] if draft else _parts(reference))]
    said = [content_words(part) for part in ([text] if draft else _parts(text))]
    most = max(2 * most, _DRAFT_NEW_WORDS) if draft else most
    amounts = amount_words(text)  # which are compared as numbers
    return any(min(len(part - one - amounts) for one in known) > int(most * len(part)) for part in said)


def _loses(question: str, reference: str, text: str, most: float) -> bool:
    """most: the share of a sentence's content words that may be gone. Each sentence is compared with the nearest one of
    the reference: a whole sentence may be left out, but "chronic" out of "chronic bronchitis" makes another statement.
    What the question says need not be said again."""
    known = [content_words(part) for part in _parts(reference)]
    let_go = content_words(question) | amount_words(reference)  # amounts are compared as numbers
    for part in map(content_words, _parts(text)):
        nearest = min(known, key=lambda one: (len(part - one), len(one - part)))
        if len(nearest - part - let_go) > int(most * len(nearest)):
            return True
    return False


def _parts(text: str) -> list[str]:
    """Sentences and the items of lists."""
    return [part for part in _PART.split(text) if words(part)] or [text]


def _loops(text: str, reference: str) -> bool:
    sentences = [" ".join(words(part)) for part in _SENTENCE.split(text)]
    long = [sentence for sentence in sentences if sentence.count(" ") >= 3]
    repeated = len(set(long)) < len(long)
    return repeated or distinct(words(text)) < _LOOP_SHARE * min(1.0, distinct(words(reference)))


def _in_proportion(text: str, reference: str, *, shorter: bool) -> bool:
    given, wanted = len(words(text)), len(words(reference))
    least = 1 if shorter else wanted / 2 - _FEW_WORDS
    return max(1, least) <= given <= 2 * wanted + _FEW_WORDS
