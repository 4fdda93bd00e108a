"""Answer fusion: rounds of candidates out of reference and rewriting, judged; the best mean score wins (Eq. 4)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raft.engines import Engine, Sampling
from raft.prompts import WORDINGS, Message, Wording
from raft.refine.embed import Embedder
from raft.refine.filter import measured
from raft.refine.floor import Floor
from raft.refine.generate import Job, Limits, outputs, reason
from raft.refine.judges import Panel
from raft.refine.progress import StageProgress
from raft.refine.rewrite import in_chat, template_options
from raft.refine.store import Failures, Store, row_key
from raft.rows import Row
from raft.settings import RefineSettings


@dataclass(frozen=True)
class Fused:
    """The best candidate of a row, so far."""

    text: str
    scores: list[float]
    mean: float


@dataclass(frozen=True)
class Fusion:
    """All by row id."""

    fused: dict[str, Fused]  # the best candidate of those that pass the floor, for the rows that have one
    rounds: dict[str, int]  # rounds spent, for every row that was sent
    problems: dict[str, list[list[str]]]  # of each candidate that could be judged; none: it passes the floor


def fuse(
    rows: Sequence[Row],
    rewritten: dict[str, str],
    engine: Callable[[], Engine],
    panel: Panel,
    floor: Floor,
    embedder: Embedder,
    store: Store,
    similarities: Store,
    failures: Failures,
    settings: RefineSettings,
    *,
    model_id: str,
    seed: int,
    bar: StageProgress,
) -> Fusion:
    """Fuses `rows`, which are those that the filter kept. A row whose rounds all gave nothing to judge goes to `failures`.

    A round is done for all rows before the next one starts, with those that no candidate has satisfied yet: so the engine
    always gets full batches, and which rows are in a batch follows from the rounds before alone.
    """
    limits = Limits(settings.batch_size, settings.max_model_len)
    sampling = Sampling(temperature=settings.fuse_temperature, max_tokens=settings.max_tokens, seed=seed)
    full: dict[str, dict[str, Any]] = {row["id"]: {**row, "rewritten": rewritten[row["id"]]} for row in rows}
    best: dict[str, Fused] = {}
    rounds: dict[str, int] = {}
    problems: dict[str, list[list[str]]] = {}
    failed: dict[str, str] = {}  # why the last round gave nothing to judge
    wording = WORDINGS[settings.prompts]
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
            chat = fuse_chat(row, rewritten[row["id"]], wording)
            options = template_options(row)
            key = row_key(model_id, parameters | options, chat)
            jobs.append(Job(row["id"], key, chat, options, {"round": number}))
        accepted: set[str] = set()
        for batch in outputs(jobs, engine, store, sampling, limits, "fuse", number):
            done = 0
            texts = [
                (line["id"], full[line["id"]]["answer"], line["text"]) for line in batch.lines if not line["failed"]
            ]
            found_similarities, _ = measured(texts, embedder, similarities)
            similarity = {text[0]: s for text, s in zip(texts, found_similarities, strict=True)}
            for line in batch.lines:
                row_id = line["id"]
                rounds[row_id] = number
                s = similarity.get(row_id)
                if s is None or isinstance(s, Exception):
                    failed[row_id] = line["failed"] if s is None else reason(s)
                else:
                    verdict = panel.judge(full[row_id], line["text"], number)
                    found = floor.problems(full[row_id], line["text"], similarity=s, mean=verdict.mean)
                    problems.setdefault(row_id, []).append(found)
                    if not found:
                        if row_id not in best or verdict.mean > best[row_id].mean:  # of equal ones the earliest stays
                            best[row_id] = Fused(line["text"], verdict.scores, verdict.mean)
                        if verdict.mean >= settings.accept_score:
                            accepted.add(row_id)
                if number == turns or row_id in accepted:
                    done += 1
                    kept += row_id in best
            bar.add_rows(done, fresh=min(batch.fresh_rows, done), tokens=batch.fresh_tokens, kept=kept)
        open_rows = [row for row in open_rows if row["id"] not in accepted]
    for row in open_rows:
        if row["id"] not in problems:
            failures.add(
                row["id"], "fuse", f"nothing to judge in {turns} of {turns} rounds; the last: {failed[row['id']]}"
            )
    return Fusion(best, rounds, problems)


def fuse_chat(row: Row, rewritten: str, wording: Wording) -> list[Message]:
    return in_chat(row, wording.fuse(row["question"], row["answer"], rewritten))
