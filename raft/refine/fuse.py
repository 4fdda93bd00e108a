"""Answer fusion: rounds of candidates out of reference and rewriting, judged; the best mean score wins (Eq. 4)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raft import prompts
from raft.config import RefineSettings
from raft.engines import Engine, Sampling
from raft.prompts import Message
from raft.refine.generate import Job, Limits, outputs
from raft.refine.judges import Panel
from raft.refine.progress import StageProgress
from raft.refine.rewrite import in_chat
from raft.refine.store import Failures, Store, row_key
from raft.rows import Row


@dataclass(frozen=True)
class Fused:
    """The best candidate of a row, so far."""

    text: str
    scores: list[float]
    mean: float


@dataclass(frozen=True)
class Fusion:
    fused: dict[str, Fused]  # row id -> best candidate, for the rows that have one
    rounds: dict[str, int]  # row id -> rounds spent, for every row that was sent


def fuse(
    rows: Sequence[Row],
    rewritten: dict[str, str],
    engine: Callable[[], Engine],
    panel: Panel,
    store: Store,
    failures: Failures,
    settings: RefineSettings,
    *,
    model_id: str,
    seed: int,
    bar: StageProgress,
) -> Fusion:
    """Fuses `rows`, which are those that the filter kept. A row without a usable candidate goes to `failures`.

    A round is done for all rows before the next one starts, with those that no candidate has satisfied yet: so the engine
    always gets full batches, and which rows are in a batch follows from the rounds before alone.
    """
    limits = Limits(settings.batch_size, settings.max_model_len)
    sampling = Sampling(temperature=settings.fuse_temperature, max_tokens=settings.max_tokens, seed=seed)
    full: dict[str, dict[str, Any]] = {row["id"]: {**row, "rewritten": rewritten[row["id"]]} for row in rows}
    best: dict[str, Fused] = {}
    rounds: dict[str, int] = {}
    problems: dict[str, str] = {}  # what was wrong with the last candidate
    open_rows = list(rows)
    turns = settings.rounds if settings.fuse_temperature > 0 else 1  # greedy: every round would say the same
    kept = 0
    for number in range(1, turns + 1):
        parameters = {
            "temperature": settings.fuse_temperature,
            "max_tokens": settings.max_tokens,
            "seed": seed,
            "round": number,
        }
        jobs = []
        for row in open_rows:
            chat = fuse_chat(row, rewritten[row["id"]])
            jobs.append(Job(row["id"], row_key(model_id, parameters, chat), chat, {"round": number}))
        accepted: set[str] = set()
        for batch in outputs(jobs, engine, store, sampling, limits, "fuse", number):
            done = 0
            for line in batch.lines:
                row_id = line["id"]
                rounds[row_id] = number
                problem = line["failed"]
                if not problem:
                    verdict = panel.judge(full[row_id], line["text"], number)
                    if verdict.mean == 0:
                        problem = "every judge rejected the candidate"
                    elif row_id not in best or verdict.mean > best[row_id].mean:  # of equal ones the earliest stays
                        best[row_id] = Fused(line["text"], verdict.scores, verdict.mean)
                if problem:
                    problems[row_id] = problem
                elif verdict.mean >= settings.accept_score:
                    accepted.add(row_id)
                if number == turns or row_id in accepted:
                    done += 1
                    kept += row_id in best
            bar.add_rows(done, fresh=min(batch.fresh_rows, done), tokens=batch.fresh_tokens, kept=kept)
        open_rows = [row for row in open_rows if row["id"] not in accepted]
    for row in open_rows:
        if row["id"] not in best:
            failures.add(
                row["id"], "fuse", f"no usable candidate in {turns} of {turns} rounds; the last: {problems[row['id']]}"
            )
    return Fusion(best, rounds)


def fuse_chat(row: Row, rewritten: str) -> list[Message]:
    return in_chat(row, prompts.fuse(row["question"], row["answer"], rewritten))
