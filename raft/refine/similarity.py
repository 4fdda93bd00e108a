"""How near two texts are in meaning (Eq. 2), and what was measured once is not measured again."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raft.isolate import isolate
from raft.refine.embed import Embedder
from raft.refine.lines import SimilarityLine
from raft.refine.store import Store, row_key

# Embeddings are float32, and their last digits depend on the other texts of their batch; a similarity is good to six.
DIGITS = 6


def cosines(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
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
    store: Store[SimilarityLine],
) -> tuple[list[float | Exception], int]:
    """cos(phi(reference), phi(text)) of each, or why there is none; and how many were not in the store."""
    pairs = [(reference, text) for _, reference, text in texts]
    keys = [row_key(embedder.name, {}, pair) for pair in pairs]
    lines = [store.get(row_id, key) for (row_id, _, _), key in zip(texts, keys, strict=True)]
    fresh = [i for i, line in enumerate(lines) if line is None]
    # All of the batch once more: so a restart that has lost the vectors finds the digits that it would have found.
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
