"""What the refinement did to the data: refined against raw answers, in numbers.

Refined and raw answers are compared over the kept rows; in all others they are the same. The rewriting stands for the
model's own style, as it is the model's wording of the same facts.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from raft.isolate import batches, reason
from raft.progress import Progress
from raft.prompts import Message
from raft.refine.acceptance import REASONS
from raft.refine.embed import Embedder
from raft.refine.lines import Diagnostics, FusedRow, Summary
from raft.refine.similarity import pair_similarities
from raft.refine.sweep import tau_sweep
from raft.rows import Row
from raft.text import ngram_f1, words

QUANTILES = (5, 25, 50, 75, 95)
_AT_ONCE = 512  # rows that are embedded together
CHARACTER_CLASSES = ("lower", "upper", "letter", "digit", "space", "punctuation", "other")

# Chats before the answer, answers -> mean negative log-likelihood a token of each answer.
AnswerNLL = Callable[[Sequence[Sequence[Message]], Sequence[str]], Sequence[float | None]]


def diagnose(
    rows: Sequence[Row],
    fused: Sequence[FusedRow],
    embedder: Embedder,
    *,
    judges: Sequence[str],
    unusable: Mapping[str, int],
    failed: int,
    agreement: float | None = None,
    nll: AnswerNLL | None = None,
    progress: bool = False,
) -> Diagnostics:
    """diagnostics.json. `rows` are the rows with their chats, `fused` the lines of fused.jsonl, in the same order.
    agreement: of the judges."""
    kept = [row for row in fused if row["kept"]]
    raw = [row["answer"] for row in kept]
    own = [row["rewritten"] for row in kept if row["rewritten"] is not None]  # which all of them have
    refined = [row["fused_answer"] for row in kept]
    with Progress("refine: embed", 3 * len(kept), "text", per_call=True, final=False, show=progress) as phase:
        embedding = _embedding(embedder, raw, own, refined)
        phase.add(3 * len(kept))
    result: Diagnostics = {
        "rows": len(fused),
        "kept": len(kept),
        "kept_share": len(kept) / len(fused) if fused else None,
        "failed": failed,
        "reasons": _reasons(fused),
        "similarity": summary([row["similarity"] for row in fused]),
        "tau": tau_sweep(fused),
        "rounds": summary([row["rounds"] for row in fused if row["rounds"]]),
        "judges": {
            name: {**summary([row["judge_scores"][i] for row in kept]), "unusable": unusable.get(name, 0)}
            for i, name in enumerate(judges)
        },
        "agreement": agreement,
        "flagged": sum("judge_flag" in row for row in fused),
        "embedding": embedding,
        "overlap": {
            f"{n}gram_f1": summary([ngram_f1(a, b, n) for a, b in zip(raw, refined, strict=True)]) for n in (1, 2)
        },
        "length": _length(raw, refined),
        "characters": _characters(raw, refined),
    }
    if nll is not None:
        chats = [row["prompt"] for row, line in zip(rows, fused, strict=True) if line["kept"]]
        with Progress("refine: likelihood", 2 * len(kept), "text", per_call=True, final=False, show=progress) as phase:
            result["nll"] = _nll(nll, chats, raw, refined)
            phase.add(2 * len(kept))
    return result


def _reasons(fused: Sequence[FusedRow]) -> dict[str, dict[str, int]]:
    """How many texts there were, how many did not pass the floor, and how many for each reason; a text may have
    several."""
    stages = {
        "rewrite": [row["rejected"]["rewrite"] for row in fused if row["similarity"] is not None],
        "fuse": [found for row in fused for found in row["rejected"]["fuse"]],
    }
    return {
        stage: {
            "texts": len(found),
            "rejected": sum(bool(reasons) for reasons in found),
            **{name: sum(name in reasons for reasons in found) for name in REASONS},
        }
        for stage, found in stages.items()
    }


def summary(values: Sequence[float | None]) -> Summary:
    """n, mean and quantiles (linear between neighbours) of the values that are not None."""
    there = [value for value in values if value is not None]
    if not there:
        return {"n": 0, "mean": None, **{f"p{q:02d}": None for q in QUANTILES}}
    data = np.asarray(there, dtype=np.float64)
    quantiles = {f"p{q:02d}": float(np.percentile(data, q)) for q in QUANTILES}
    return {"n": len(there), "mean": float(data.mean()), **quantiles}


def character_classes(texts: Sequence[str]) -> dict[str, float]:
    """Share of each class of characters in all texts together."""
    counts = Counter(_class(character) for text in texts for character in text)
    total = counts.total()
    return {name: counts[name] / total if total else 0.0 for name in CHARACTER_CLASSES}


def _class(character: str) -> str:
    if character.islower():
        return "lower"
    if character.isupper():
        return "upper"
    if character.isspace():
        return "space"
    kinds = {"L": "letter", "M": "letter", "N": "digit", "P": "punctuation", "S": "punctuation"}
    return kinds.get(unicodedata.category(character)[0], "other")


def _embedding(embedder: Embedder, raw: list[str], own: list[str], refined: list[str]) -> dict[str, Summary]:
    """Cosines of raw answer, rewriting and refined answer with one another."""
    found: dict[str, list[float | None]] = {"raw_refined": [], "raw_own": [], "own_refined": []}
    for places in batches(range(len(raw)), _AT_ONCE):  # so that the vectors of all rows are not in memory at once
        pairs = [pair for i in places for pair in ((raw[i], refined[i]), (raw[i], own[i]), (own[i], refined[i]))]
        cosines = [float(cosine) if np.isfinite(cosine) else None for cosine in pair_similarities(embedder, pairs)]
        for i, values in enumerate(found.values()):
            values += cosines[i::3]
    return {name: summary(values) for name, values in found.items()}


def _length(raw: list[str], refined: list[str]) -> dict[str, Summary]:
    """Words of an answer before and after, their difference (shift) and their quotient (ratio)."""
    before, after = ([len(words(text)) for text in texts] for texts in (raw, refined))
    return {
        "raw_words": summary(before),
        "refined_words": summary(after),
        "shift_words": summary([b - a for a, b in zip(before, after, strict=True)]),
        "ratio": summary([b / a if a else None for a, b in zip(before, after, strict=True)]),
    }


def _characters(raw: list[str], refined: list[str]) -> dict[str, dict[str, float]]:
    """Shares of character classes, and half the sum of their differences: 0 the same, 1 nothing in common."""
    before, after = character_classes(raw), character_classes(refined)
    shares = {name: {"raw": before[name], "refined": after[name]} for name in CHARACTER_CLASSES}
    distance = sum(abs(before[name] - after[name]) for name in CHARACTER_CLASSES) / 2
    return {**shares, "distance": {"value": distance}}


def _nll(
    nll: AnswerNLL, chats: list[list[Message]], raw: list[str], refined: list[str]
) -> dict[str, Summary] | dict[str, str]:
    """Negative log-likelihood of both answers under the model, in nats a token, and refined minus raw: below 0 the
    refined answer is nearer to the model's own style."""
    try:
        scores = list(nll([*chats, *chats], [*raw, *refined])) if raw else []
        before, after = scores[: len(raw)], scores[len(raw) :]
        pairs = list(zip(before, after, strict=True))
    except Exception as error:  # noqa: BLE001  # a number about the rows must not cost the rows
        return {"failed": reason(error)}
    shift = [b - a if a is not None and b is not None else None for a, b in pairs]
    return {"raw": summary(before), "refined": summary(after), "shift": summary(shift)}
