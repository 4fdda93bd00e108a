"""Stage 1 from rows to fused rows, every stage on disk as it goes."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from raft.engines import Engine
from raft.errors import InputError
from raft.prompts import WORDINGS
from raft.refine.diagnostics import AnswerNLL, diagnose
from raft.refine.embed import Embedder, load_embedder
from raft.refine.filter import Filtered, filter_rewritings
from raft.refine.floor import Floor
from raft.refine.fuse import Fusion, fuse
from raft.refine.judges import Judge, Panel, check_judges, default_judges
from raft.refine.progress import StageProgress
from raft.refine.rewrite import rewrite
from raft.refine.store import Failures, Store, write_lines
from raft.rows import Row, normalize_rows
from raft.runs import Run, write_json
from raft.settings import RefineSettings

log = logging.getLogger(__name__)


def refine(
    rows: Sequence[Mapping[str, Any]],
    engine: Engine,
    run: Run,
    settings: RefineSettings,
    *,
    model_id: str,
    embedder: Embedder | None = None,
    judges: Sequence[Judge] | None = None,
    nll: AnswerNLL | None = None,
    progress: bool = True,
    seed: int = 0,
    fusion_engine: Callable[[], Engine] | None = None,
    fusion_id: str | None = None,
) -> list[dict[str, Any]]:
    """The fused rows, in input order; writes rewrite, filter, fuse, judge, failed and fused.jsonl and diagnostics.json.

    What an earlier call left in `run.refine_dir` is taken over where its key fits: `model_id` is part of it and must be
    another one for other weights. `nll` adds the style shift to the diagnostics. `fusion_engine` makes the engine of the
    fusion model, named by `fusion_id`, when it is first needed; without it `engine` fuses.
    """
    checked = normalize_rows(rows, source="rows to refine")
    # An answer that calls tools stays as it is: there is no wording to change.
    texts = [row for row in checked if not row.get("answer_turn", {}).get("tool_calls")]
    judges = default_judges() if judges is None else judges
    check_judges(judges)
    embedder = load_embedder(settings.embedding_model) if embedder is None else embedder
    folder = run.refine_dir
    with ExitStack() as files:
        stores = {
            name: files.enter_context(Store(folder / f"{name}.jsonl"))
            for name in ("rewrite", "filter", "fuse", "judge")
        }
        failures = files.enter_context(Failures(folder / "failed.jsonl"))
        with StageProgress("rewrite", len(texts), per_call=True, show=progress) as bar:
            rewritten = rewrite(
                texts, lambda: engine, stores["rewrite"], failures, settings, model_id=model_id, seed=seed, bar=bar
            )
        panel = Panel(judges, stores["judge"])
        floor = Floor(WORDINGS[settings.prompts], settings)
        with StageProgress("filter", len(texts), show=progress) as bar:
            filtered = filter_rewritings(
                texts, rewritten, embedder, floor, panel, stores["filter"], failures, settings, bar=bar
            )
        passed = [row for row in checked if filtered.problems.get(row["id"]) == []]
        with StageProgress("fuse", len(passed), show=progress) as bar:
            fusion = fuse(
                passed,
                rewritten,
                fusion_engine or (lambda: engine),
                panel,
                floor,
                embedder,
                stores["fuse"],
                stores["filter"],
                failures,
                settings,
                model_id=(fusion_id or model_id) if fusion_engine else model_id,
                seed=seed,
                bar=bar,
            )
    fused = [_fused_row(row, rewritten, filtered, fusion) for row in checked]
    write_lines(folder / "fused.jsonl", fused)
    failures.finish([row["id"] for row in checked])
    _warn(failures, panel, len(checked))
    names = [judge.name for judge in judges]
    numbers = diagnose(
        checked,
        fused,
        embedder,
        judges=names,
        unusable=panel.unusable,
        failed=len(failures),
        nll=nll,
        progress=progress,
    )
    write_json(folder / "diagnostics.json", numbers)
    if texts and all(row["id"] in failures for row in texts):
        first = failures.first()
        raise InputError(
            f"{folder}: the refinement failed for all {len(texts)} rows, row {first['id']} in {first['stage']}: "
            f"{first['reason']}; nothing is refined"
        )
    return fused


def _fused_row(row: Row, rewritten: Mapping[str, str], filtered: Filtered, fusion: Fusion) -> dict[str, Any]:
    """A line of fused.jsonl: what the refinement says of the row, then the row's other fields."""
    best = fusion.fused.get(row["id"])
    line: dict[str, Any] = {
        "id": row["id"],
        "question": row["question"],
        "answer": row["answer"],
        "rewritten": rewritten.get(row["id"]),
        "similarity": filtered.similarity.get(row["id"]),
        "kept": best is not None,
        "fused_answer": row["answer"] if best is None else best.text,
        "judge_scores": [] if best is None else best.scores,
        "rounds": fusion.rounds.get(row["id"], 0),
        "rejected": {
            "rewrite": filtered.problems.get(row["id"], []),
            "fuse": fusion.problems.get(row["id"], []),
        },
    }
    plain = row["prompt"] == [{"role": "user", "content": row["question"]}]
    return {**line, **{key: value for key, value in row.items() if key not in line and not (plain and key == "prompt")}}


def _warn(failures: Failures, panel: Panel, rows: int) -> None:
    if failures:
        first = failures.first()
        log.warning(
            "refine: %d of %d rows failed and keep their answer (failed.jsonl), the first: row %s in %s: %s",
            len(failures), rows, first["id"], first["stage"], first["reason"],
        )  # fmt: skip
    for name, count in panel.unusable.items():
        log.warning("refine: %d scores of judge %s were unusable and counted as 0", count, name)
