"""Answer fusion: rounds of candidates out of reference and rewriting, judged; the best mean score wins (Eq. 4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from raft.isolate import batches, reason
from raft.judges import Candidate, mean
from raft.prompts import Message, Wording
from raft.refine.context import RefineContext
from raft.refine.filter import Assessment, assess
from raft.refine.rewrite import in_chat, template_options
from raft.refine.texts import Job, texts
from raft.rows import Row

REFERENCE = -1
"""In the place of the round, where the reference itself is scored."""


@dataclass
class Fusion:
    """What the rounds of one row have given so far."""

    best: Assessment | None = None
    """The candidate with the highest mean score of those that pass the floor; of equal ones the earliest."""
    rounds: int = 0
    problems: list[list[str]] = field(default_factory=list)
    """Of each candidate that could be judged; none: it passes the floor."""
    failed: str = ""
    """Why the last candidate that could not be judged could not."""

    def add(self, round: int, candidate: Assessment | str) -> None:
        """candidate: or why there is none."""
        self.rounds = round
        if isinstance(candidate, str):
            self.failed = candidate
            return
        self.problems.append(candidate.problems)
        if not candidate.problems and (self.best is None or candidate.mean > self.best.mean):
            self.best = candidate

    def accepted(self, score: float) -> bool:
        """Whether the best candidate is good enough to end the rounds."""
        return self.best is not None and self.best.mean >= score


def fuse(context: RefineContext, rows: Sequence[Row], rewritten: Mapping[str, str]) -> dict[str, Fusion]:
    """Row id -> what its rounds gave, for `rows`, which are those that the filter kept. A row whose rounds all gave
    nothing to judge goes to the failures.

    A round is done for all rows before the next one starts, with those that no candidate has satisfied yet, so that the
    model always gets full batches.
    """
    settings, wording = context.settings, context.wording
    fusions = {row["id"]: Fusion() for row in rows}
    rounds = settings.rounds if settings.fuse_temperature > 0 else 1  # greedy: every round would say the same
    open_rows = {row["id"]: row for row in rows}
    kept = 0
    with context.stages.slice("fuse", len(rows), model=context.models.fuser) as bar:
        for number in range(1, rounds + 1):
            jobs = [
                Job(row_id, partial(fuse_chat, row, rewritten[row_id], wording), template_options(row), number)
                for row_id, row in open_rows.items()
            ]
            for batch in texts(context, "fuse", context.models.fuser, jobs, settings.fuse_temperature):
                said = [open_rows[row_id] for row_id in batch.texts]
                assessed, _ = assess(context, said, rewritten, batch.texts, number)
                results = {**assessed, **batch.failed}
                for row_id, found in results.items():
                    fusions[row_id].add(number, reason(found) if isinstance(found, Exception) else found)
                made = [fusions[row_id] for row_id in results]
                closed = [one for one in made if number == rounds or one.accepted(settings.accept_score)]
                kept += sum(one.best is not None for one in closed)
                fresh = min(batch.fresh_rows, len(closed))
                bar.add_rows(
                    len(closed),
                    fresh=fresh,
                    tokens=batch.fresh_tokens,
                    kept=kept,
                    failed=sum(not one.problems for one in closed),
                    made=batch.made,
                )
            open_rows = {i: row for i, row in open_rows.items() if not fusions[i].accepted(settings.accept_score)}
        if settings.margin is not None:
            made_it = [row for row in rows if fusions[row["id"]].best]
            _hold_against_references(context, made_it, fusions, settings.margin)
            bar.add_rows(0, kept=sum(fusions[row["id"]].best is not None for row in made_it))
    for row_id in open_rows:
        if not fusions[row_id].problems:
            last = fusions[row_id].failed
            context.failures.add(row_id, "fuse", f"nothing to judge in {rounds} of {rounds} rounds; the last: {last}")
    return fusions


def _hold_against_references(
    context: RefineContext, rows: Sequence[Row], fusions: Mapping[str, Fusion], margin: float
) -> None:
    """Drops the candidates that the judges do not score above their references by `margin`. The best of a row decides
    for all of its candidates. None is above a reference that a judge could not score."""
    for batch in batches(rows, context.settings.batch_size):
        references = [Candidate(row["id"], row["question"], row["answer"], row["answer"]) for row in batch]
        judged = context.panel.judge(references, REFERENCE, [True] * len(batch))
        for row, scores in zip(batch, judged, strict=True):
            fusion = fusions[row["id"]]
            unknown = any(score.value is None for score in scores)
            if fusion.best is not None and (unknown or fusion.best.mean < mean(scores) + margin):
                for problems in fusion.problems:
                    if not problems:
                        problems.append("margin")
                fusion.best = None


def fuse_chat(row: Row, rewritten: str, wording: Wording) -> list[Message]:
    return in_chat(row, wording.fuse(row["question"], row["answer"], rewritten))
