"""Similarity of an answer and its reference: sentence embeddings, content words, token overlap."""

import re
from collections.abc import Sequence

from raft.evaluate.checks import token_f1
from raft.real.results import Measures
from raft.refine.embed import Embedder
from raft.refine.similarity import pair_similarities
from raft.text import content_words

_ROUGE_TOKEN = re.compile(r"[a-z0-9]+")


def measure(outputs: Sequence[str], references: Sequence[str], embedder: Embedder) -> list[Measures]:
    """The measures of each answer. The embedder reads only the first tokens of both texts (MiniLM: 256)."""
    written = [i for i, output in enumerate(outputs) if output.strip()]
    cosines = pair_similarities(embedder, [(outputs[i], references[i]) for i in written]) if written else ()
    similarities = dict(zip(written, map(float, cosines), strict=True))
    return [
        Measures(
            similarity=similarities.get(i, 0.0),
            recall=content_recall(output, reference),
            f1=token_f1(output, reference),
            rouge_l=rouge_l(output, reference),
            words=len(output.split()),
        )
        for i, (output, reference) in enumerate(zip(outputs, references, strict=True))
    ]


def content_recall(output: str, reference: str) -> float:
    """Share in [0, 1] of the reference's content words (`raft.text`) that occur in the answer."""
    expected = content_words(reference)
    return len(expected & content_words(output)) / len(expected) if expected else 0.0


def rouge_l(output: str, reference: str) -> float:
    """F-measure in [0, 1] of the longest common subsequence, as `rouge_score` computes it (without stemming)."""
    first, second = _ROUGE_TOKEN.findall(output.lower()), _ROUGE_TOKEN.findall(reference.lower())
    common = _longest_common(first, second)
    return 2 * common / (len(first) + len(second)) if common else 0.0  # 2PR / (P + R)


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    lengths = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for j, other in enumerate(second, 1):
            above = lengths[j]
            lengths[j] = diagonal + 1 if word == other else max(above, lengths[j - 1])
            diagonal = above
    return lengths[-1]
