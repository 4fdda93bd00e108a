"""What the refinement did to the data: refined against raw answers, in numbers.

Refined and raw answers are compared over the kept rows; in all others they are the same. The rewriting stands for the
model's own style, as it is the model's wording of the same facts.
"""

import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from raft.isolate import reason
from raft.progress import Progress
from raft.prompts import Message
from raft.refine.acceptance import REASONS
from raft.refine.embed import Embedder
from raft.refine.lines import Diagnostics, FusedRow, Summary
from raft.refine.similarity import pair_similarities
from raft.refine.sweep import Similarities
from raft.rows import Row
from raft.text import ngram_f1, words

if TYPE_CHECKING:
    Numbers = array[float]

QUANTILES = (5, 25, 50, 75, 95)
_AT_ONCE = 512  # rows that are read, embedded and scored together
CHARACTER_CLASSES = ("lower", "upper", "letter", "digit", "space", "punctuation", "other")

# Chats before the answer, answers -> mean negative log-likelihood a token of each answer.
AnswerNLL = Callable[[Sequence[Sequence[Message]], Sequence[str]], Sequence[float | None]]


def diagnose(
    rows: Sequence[Row],
    fused: Iterable[FusedRow],
    embedder: Embedder,
    *,
    judges: Sequence[str],
    unusable: Mapping[str, int],
    failed: int,
    agreement: float | None = None,
    nll: AnswerNLL | None = None,
    progress: bool = False,
) -> Diagnostics:
    """diagnostics.json. `rows` are the rows with their chats, `fused` the lines of fused.jsonl, in the same order; they
    are read once, a few at a time. agreement: of the judges."""
    reasons = {stage: Counter({name: 0 for name in ("texts", "rejected", *REASONS)}) for stage in ("rewrite", "fuse")}
    rewritings = Similarities()
    counts = Counter[str]()
    scores: list[Numbers] = [array("d") for _ in judges]
    rounds, kept = array("d"), _Kept(embedder, nll)
    with Progress("refine: diagnostics", len(rows), final=False, show=progress) as phase:
        lines = zip(rows, fused, strict=True)
        while piece := list(islice(lines, _AT_ONCE)):
            for _, line in piece:
                counts.update(rows=1, kept=int(line["kept"]), flagged=int("judge_flag" in line))
                rewritings.add(line)
                if line["similarity"] is not None:
                    _count(reasons["rewrite"], line["rejected"]["rewrite"])
                for found in line["rejected"]["fuse"]:
                    _count(reasons["fuse"], found)
                if line["rounds"]:
                    rounds.append(line["rounds"])
                for of_judge, score in zip(scores, line["judge_scores"], strict=False):  # none where it is not kept
                    of_judge.append(score)
            kept.add([(row, line) for row, line in piece if line["kept"]])
            phase.add(len(piece))
    result: Diagnostics = {
        "rows": counts["rows"],
        "kept": counts["kept"],
        "kept_share": counts["kept"] / counts["rows"] if counts["rows"] else None,
        "failed": failed,
        "reasons": {stage: dict(found) for stage, found in reasons.items()},
        "similarity": summary(rewritings.values),
        "tau": rewritings.sweep(),
        "rounds": summary(rounds),
        "judges": {
            name: {**summary(found), "unusable": unusable.get(name, 0)}
            for name, found in zip(judges, scores, strict=True)
        },
        "agreement": agreement,
        "flagged": counts["flagged"],
        "embedding": kept.summaries("raw_refined", "raw_own", "own_refined"),
        "overlap": kept.summaries("1gram_f1", "2gram_f1"),
        "length": kept.summaries("raw_words", "refined_words", "shift_words", "ratio"),
        "characters": _distance(kept.characters["raw"], kept.characters["refined"]),
    }
    if nll is not None:
        result["nll"] = {"failed": kept.nll_failed} if kept.nll_failed else kept.summaries("raw", "refined", "shift")
    return result


class _Kept:
    """Numbers of the kept rows, which are added piece by piece."""

    def __init__(self, embedder: Embedder, nll: AnswerNLL | None):
        self.characters: dict[str, Counter[str]] = {"raw": Counter(), "refined": Counter()}
        self.nll_failed = ""
        self._embedder, self._nll = embedder, nll
        self._numbers: defaultdict[str, Numbers] = defaultdict(lambda: array("d"))

    def summaries(self, *names: str) -> dict[str, Summary]:
        return {name: summary(self._numbers[name]) for name in names}

    def add(self, piece: Sequence[tuple[Row, FusedRow]]) -> None:
        if not piece:
            return
        raw, refined = [line["answer"] for _, line in piece], [line["fused_answer"] for _, line in piece]
        own = [line["rewritten"] or "" for _, line in piece]  # which all of them have
        pairs = [pair for a, b, c in zip(raw, own, refined, strict=True) for pair in ((a, c), (a, b), (b, c))]
        cosines = [
            float(cosine) if np.isfinite(cosine) else None for cosine in pair_similarities(self._embedder, pairs)
        ]
        self._append(raw_refined=cosines[::3], raw_own=cosines[1::3], own_refined=cosines[2::3])
        for n in (1, 2):
            self._append(**{f"{n}gram_f1": [ngram_f1(a, b, n) for a, b in zip(raw, refined, strict=True)]})
        before, after = ([len(words(text)) for text in texts] for texts in (raw, refined))
        self._append(raw_words=before, refined_words=after, shift_words=_shift(before, after))
        self._append(ratio=[b / a if a else None for a, b in zip(before, after, strict=True)])
        for name, texts in (("raw", raw), ("refined", refined)):
            self.characters[name] += character_classes(texts)
        self._add_nll([row["prompt"] for row, _ in piece], raw, refined)

    def _add_nll(self, chats: Sequence[Sequence[Message]], raw: Sequence[str], refined: Sequence[str]) -> None:
        """Negative log-likelihood of both answers under the model, in nats a token, and refined minus raw: below 0 the
        refined answer is nearer to the model's own style."""
        if self._nll is None or self.nll_failed:
            return
        try:
            found = list(self._nll([*chats, *chats], [*raw, *refined]))
            before, after = found[: len(raw)], found[len(raw) :]
            self._append(raw=before, refined=after, shift=_shift(before, after))
        except Exception as error:  # noqa: BLE001  # a number about the rows must not cost the rows
            self.nll_failed = reason(error)

    def _append(self, **columns: Sequence[float | None]) -> None:
        """None is left out."""
        for name, values in columns.items():
            self._numbers[name].extend(value for value in values if value is not None)


def _shift(before: Sequence[float | None], after: Sequence[float | None]) -> list[float | None]:
    return [b - a if a is not None and b is not None else None for a, b in zip(before, after, strict=True)]


def _count(counts: Counter[str], problems: Sequence[str]) -> None:
    """Counts one text with what speaks against it, which may be several reasons."""
    counts.update(["texts", *(["rejected"] if problems else []), *problems])


def summary(values: Sequence[float]) -> Summary:
    """n, mean and quantiles (linear between neighbours)."""
    if not values:
        return {"n": 0, "mean": None, **{f"p{q:02d}": None for q in QUANTILES}}
    data = np.asarray(values, dtype=np.float64)
    quantiles = {f"p{q:02d}": float(np.percentile(data, q)) for q in QUANTILES}
    return {"n": len(values), "mean": float(data.mean()), **quantiles}


def character_classes(texts: Iterable[str]) -> Counter[str]:
    """Characters of each class in all texts together."""
    return Counter(_class(character) for text in texts for character in text)


def _class(character: str) -> str:
    if character.islower():
        return "lower"
    if character.isupper():
        return "upper"
    if character.isspace():
        return "space"
    kinds = {"L": "letter", "M": "letter", "N": "digit", "P": "punctuation", "S": "punctuation"}
    return kinds.get(unicodedata.category(character)[0], "other")


def _distance(raw: Counter[str], refined: Counter[str]) -> dict[str, dict[str, float]]:
    """Shares of character classes, and half the sum of their differences: 0 the same, 1 nothing in common."""
    shares = {
        name: {"raw": raw[name] / max(raw.total(), 1), "refined": refined[name] / max(refined.total(), 1)}
        for name in CHARACTER_CLASSES
    }
    distance = sum(abs(share["raw"] - share["refined"]) for share in shares.values()) / 2
    return {**shares, "distance": {"value": distance}}
