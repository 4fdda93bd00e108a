"""Semantic filtering: a rewriting is kept if it still means what the answer means (Eqs. 2-3) and passes the floor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raft.refine.embed import Embedder
from raft.refine.floor import Floor
from raft.refine.generate import batches, isolate, reason
from raft.refine.judges import Panel
from raft.refine.progress import StageProgress
from raft.refine.store import Failures, Store, row_key
from raft.rows import Row
from raft.settings import RefineSettings

# Embeddings are float32 and depend on their batch's padding in the last digits; a similarity is good to six.
DIGITS = 6


def cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """[n] cosines of the rows of a and b ([n, d] each), in float64, to six digits (Eq. 2).

    NaN where a row is all zeros.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return np.clip(cosine, -1.0, 1.0).round(DIGITS)


def pair_similarities(embedder: Embedder, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """[n] cosines of the two texts of each pair. A text is embedded once, so equal texts have exactly 1."""
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    place = {text: i for i, text in enumerate(texts)}
    vectors = np.asarray(embedder.encode(texts))
    return cosines(vectors[[place[a] for a, _ in pairs]], vectors[[place[b] for _, b in pairs]])


def measured(
    texts: Sequence[tuple[str, str, str]],  # row id, reference answer, text
    embedder: Embedder,
    store: Store,
) -> tuple[list[float | Exception], int]:
    """cos(phi(reference), phi(text)) of each, or why there is none; and how many were not in the store."""
    pairs = [(reference, text) for _, reference, text in texts]
    keys = [row_key(embedder.name, {}, pair) for pair in pairs]
    lines = [store.get(row_id, key) for (row_id, _, _), key in zip(texts, keys, strict=True)]
    fresh = [i for i, line in enumerate(lines) if line is None]
    # All of them once more: the last digits of an embedding depend on its company.
    made = isolate(lambda part: pair_similarities(embedder, part).tolist(), pairs) if fresh else []
    found: list[float | Exception] = []
    for i, (row_id, _, _) in enumerate(texts):
        line = lines[i]
        similarity = made[i] if line is None else line["similarity"]
        if not isinstance(similarity, Exception) and not np.isfinite(similarity):
            similarity = ValueError(f"the similarity is {similarity}, expected a number")
        if line is None and not isinstance(similarity, Exception):
            store.add({"id": row_id, "key": keys[i], "similarity": similarity})
        found.append(similarity)
    return found, len(fresh)


@dataclass(frozen=True)
class Filtered:
    """What came of the rewritings. All by row id."""

    similarity: dict[str, float]
    problems: dict[str, list[str]]  # of every rewriting that could be compared; none: it is kept


def filter_rewritings(
    rows: Sequence[Row],
    rewritten: dict[str, str],
    embedder: Embedder,
    floor: Floor,
    panel: Panel,
    store: Store,
    failures: Failures,
    settings: RefineSettings,
    *,
    bar: StageProgress,
) -> Filtered:
    """s = cos(phi(y), phi(y~)) of every row that has a rewriting, and what speaks against it (floor.py).

    Tau is no part of the key: with another one the stored similarities are compared anew.
    """
    similarity: dict[str, float] = {}
    problems: dict[str, list[str]] = {}
    kept = 0
    # Batches fixed by the input order, as in generation.
    for batch in batches(rows, settings.batch_size):
        usable = [row for row in batch if row["id"] in rewritten]
        found, fresh = measured([(row["id"], row["answer"], rewritten[row["id"]]) for row in usable], embedder, store)
        for row, s in zip(usable, found, strict=True):
            if isinstance(s, Exception):
                failures.add(row["id"], "filter", reason(s))
                continue
            text = rewritten[row["id"]]
            verdict = panel.judge({**row, "rewritten": text}, text, 0)
            similarity[row["id"]] = s
            problems[row["id"]] = floor.problems(row, text, similarity=s, mean=verdict.mean, draft=True)
            kept += not problems[row["id"]]
        skipped = len(batch) - len(usable)  # without a rewriting there is nothing to do, neither now nor before
        bar.add_rows(len(batch), fresh=fresh + (skipped if fresh else 0), kept=kept)
    return Filtered(similarity, problems)
