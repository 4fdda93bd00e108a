"""Semantic filtering: a rewriting is kept if it still means what the answer means (Eqs. 2-3)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raft.config import RefineSettings
from raft.refine.embed import Embedder
from raft.refine.generate import batches, isolate, reason
from raft.refine.progress import StageProgress
from raft.refine.store import Failures, Store, row_key
from raft.rows import Row

# Embeddings are float32 and depend on their batch's padding in the last digits; a similarity is good to six.
DIGITS = 6


def keeps(similarity: float, tau: float) -> bool:
    """Eq. 3: ybar = y~ if s >= tau, else y."""
    return similarity >= tau


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


def similarities(
    rows: Sequence[Row],
    rewritten: dict[str, str],
    embedder: Embedder,
    store: Store,
    failures: Failures,
    settings: RefineSettings,
    *,
    bar: StageProgress,
) -> dict[str, float]:
    """Row id -> s = cos(phi(y), phi(y~)) of every row that has a rewriting.

    Tau is no part of the key: with another one the stored similarities are compared anew.
    """
    found: dict[str, float] = {}
    kept = 0
    # Batches fixed by the input order, as in generation: the last digits of an embedding depend on its company.
    for batch in batches(rows, settings.batch_size):
        usable = [row for row in batch if row["id"] in rewritten]
        pairs = [(row["answer"], rewritten[row["id"]]) for row in usable]
        keys = [row_key(embedder.name, {}, pair) for pair in pairs]
        lines = [store.get(row["id"], key) for row, key in zip(usable, keys, strict=True)]
        fresh = [i for i, line in enumerate(lines) if line is None]
        made = isolate(lambda part: pair_similarities(embedder, part).tolist(), pairs) if fresh else []
        for i, row in enumerate(usable):
            line = lines[i]
            similarity = made[i] if line is None else line["similarity"]
            if isinstance(similarity, Exception):
                failures.add(row["id"], "filter", reason(similarity))
            elif not np.isfinite(similarity):
                failures.add(row["id"], "filter", f"the similarity is {similarity}, expected a number")
            else:
                found[row["id"]] = float(similarity)
                kept += keeps(found[row["id"]], settings.tau)
                if line is None:
                    store.add({"id": row["id"], "key": keys[i], "similarity": found[row["id"]]})
        skipped = len(batch) - len(usable)  # without a rewriting there is nothing to do, neither now nor before
        bar.add_rows(len(batch), fresh=len(fresh) + (skipped if fresh else 0), kept=kept)
    return found
