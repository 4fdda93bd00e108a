"""Semantic filtering: a rewriting is kept if it still means what the answer means (Eqs. 2-3) and passes the floor.

Rewritings and fused candidates are compared, judged and held against the floor in the same way (`assess`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from raft.isolate import batches, reason
from raft.judges import Candidate, Score, mean
from raft.refine.context import RefineContext
from raft.refine.similarity import measured
from raft.rows import Row


@dataclass(frozen=True, slots=True)
class Assessment:
    """What is known of a text that may take the place of a reference answer."""

    text: str
    similarity: float
    """Its cosine to the reference, s = cos(phi(y), phi(text))."""
    scores: list[Score]
    """In the order of the judges; without those that cost something if the text has other problems."""
    problems: list[str]
    """What speaks against it (`acceptance.REASONS`); none: it may be used."""

    @property
    def mean(self) -> float:
        """Of the judges' scores, in [0, 1]; 0 without any."""
        return mean(self.scores)


def assess(
    context: RefineContext, rows: Sequence[Row], rewritten: Mapping[str, str], texts: Mapping[str, str], round: int
) -> tuple[dict[str, Assessment | Exception], int]:
    """Row id -> what is known of the row's text, or what its embedding raised; and how many had not been measured yet.

    rewritten, texts: by row id. round: of the fusion that made the texts; 0 where they are the rewritings themselves.
    """
    similarities, fresh = measured(
        [(row["id"], row["answer"], texts[row["id"]]) for row in rows],
        context.models.embedder,
        context.similarities,
    )
    assessed: dict[str, Assessment | Exception] = {}
    compared: list[tuple[Row, str, float]] = []
    for row, similarity in zip(rows, similarities, strict=True):
        if isinstance(similarity, Exception):
            assessed[row["id"]] = similarity
        else:
            compared.append((row, texts[row["id"]], similarity))
    candidates = [
        Candidate(row["id"], row["question"], row["answer"], text, rewritten[row["id"]]) for row, text, _ in compared
    ]
    acceptance = context.acceptance
    problems = [
        acceptance.problems(row, text, similarity=similarity, draft=round == 0) for row, text, similarity in compared
    ]
    judged = context.panel.judge(candidates, round, [not found for found in problems])
    for (row, text, similarity), found, scores in zip(compared, problems, judged, strict=True):
        assessed[row["id"]] = Assessment(text, similarity, scores, acceptance.with_score(found, scores))
    return assessed, fresh


def filter_rewritings(
    context: RefineContext, rows: Sequence[Row], rewritten: Mapping[str, str]
) -> dict[str, Assessment]:
    """Row id -> what is known of its rewriting, for every row that has one that can be compared.

    Tau is no part of the key: with another one the stored similarities are compared anew.
    """
    assessed: dict[str, Assessment] = {}
    kept = 0
    with context.stages.slice("filter", len(rows)) as bar:
        # Batches fixed by the input order, for the last digits of the embeddings.
        for batch in batches(rows, context.settings.batch_size):
            usable = [row for row in batch if row["id"] in rewritten]
            found, fresh = assess(context, usable, rewritten, rewritten, 0)
            for row_id, result in found.items():
                if isinstance(result, Exception):
                    context.failures.add(row_id, "filter", reason(result))
                else:
                    assessed[row_id] = replace(result, scores=[])  # which nobody reads again: they are on disk
                    kept += not result.problems
            skipped = len(batch) - len(usable)  # without a rewriting there is nothing to do, neither now nor before
            bar.add_rows(
                len(batch),
                fresh=fresh + (skipped if fresh else 0),
                kept=kept,
                new=fresh,
                failed=sum(isinstance(result, Exception) for result in found.values()),
            )
    return assessed
