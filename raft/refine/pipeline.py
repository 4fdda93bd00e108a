"""Stage 1 from rows to fused rows, every stage on disk as it goes."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from raft.errors import InputError
from raft.judges import check_judges
from raft.refine.context import Models, RefineContext, open_context
from raft.refine.diagnostics import AnswerNLL, diagnose
from raft.refine.filter import Assessment, filter_rewritings
from raft.refine.fuse import Fusion, fuse
from raft.refine.lines import FusedRow
from raft.refine.panel import Panel
from raft.refine.progress import StageNumbers
from raft.refine.rewrite import rewrite
from raft.refine.store import Failures, write_lines
from raft.rows import Row, normalize_rows
from raft.runs import Run, write_json
from raft.settings import RefineSettings

log = logging.getLogger(__name__)


def refine(
    rows: Sequence[Mapping[str, object]],
    models: Models,
    run: Run,
    settings: RefineSettings,
    *,
    seed: int = 0,
    nll: AnswerNLL | None = None,
    progress: bool = True,
    retry_failed: bool = False,
    numbers: list[StageNumbers] | None = None,
) -> list[FusedRow]:
    """The fused rows, in input order; writes rewrite, filter, fuse, judge, failed and fused.jsonl and diagnostics.json.

    What an earlier call left in `run.refine_dir` is taken over where its key fits. `nll` adds the style shift to the
    diagnostics. retry_failed: asks again, with other seeds, for texts that failed in a way that would last. numbers: a
    list that gets what each stage came to. InputError for rows that are not what was expected, and where all of them
    failed.
    """
    checked = normalize_rows(rows, source="rows to refine")
    check_judges(models.judges)
    folder = run.refine_dir
    with open_context(folder, settings, models, seed=seed, progress=progress, retry_failed=retry_failed) as context:
        rewritten, rewritings, fusions = do_stages(context, checked)
    fused = [
        _fused_row(row, rewritten.get(row["id"]), rewritings.get(row["id"]), fusions.get(row["id"], Fusion()))
        for row in checked
    ]
    for line in fused:
        if line["id"] in context.panel.flagged:
            line["judge_flag"] = context.panel.flagged[line["id"]]
    write_lines(folder / "fused.jsonl", fused)
    failures, panel = context.failures, context.panel
    failures.finish([row["id"] for row in checked])
    _warn(failures, panel, len(checked))
    diagnostics = diagnose(
        checked,
        fused,
        context.models.embedder,
        judges=[judge.name for judge in models.judges],
        unusable=panel.unusable,
        failed=len(failures),
        agreement=panel.agreement.alpha,
        nll=nll,
        progress=progress,
    )
    write_json(folder / "diagnostics.json", diagnostics)
    if numbers is not None:
        numbers += context.numbers
    texts = [row for row in checked if has_wording(row)]
    if texts and all(row["id"] in failures for row in texts):
        first = failures.first()
        raise InputError(
            f"{folder}: the refinement failed for all {len(texts)} rows, row {first['id']} in {first['stage']}: "
            f"{first['reason']}; nothing is refined"
        )
    return fused


def do_stages(
    context: RefineContext, rows: Sequence[Row]
) -> tuple[dict[str, str], dict[str, Assessment], dict[str, Fusion]]:
    """Rewritings, what is known of them, and fusions, each by row id; on disk as they are made."""
    texts = [row for row in rows if has_wording(row)]
    rewritten = rewrite(context, texts)
    rewritings = filter_rewritings(context, texts, rewritten)
    passed = [row for row in texts if row["id"] in rewritings and not rewritings[row["id"]].problems]
    return rewritten, rewritings, fuse(context, passed, rewritten)


def has_wording(row: Row) -> bool:
    """An answer that calls tools stays as it is: there is no wording to change."""
    return not row.get("answer_turn", {}).get("tool_calls")


def _fused_row(row: Row, rewritten: str | None, rewriting: Assessment | None, fusion: Fusion) -> FusedRow:
    best = fusion.best
    line: FusedRow = {
        "id": row["id"],
        "question": row["question"],
        "answer": row["answer"],
        "rewritten": rewritten,
        "similarity": None if rewriting is None else rewriting.similarity,
        "kept": best is not None,
        "fused_answer": row["answer"] if best is None else best.text,
        "judge_scores": [] if best is None else [score.value or 0.0 for score in best.scores],
        "rounds": fusion.rounds,
        "rejected": {"rewrite": [] if rewriting is None else rewriting.problems, "fuse": fusion.problems},
    }
    plain = row["prompt"] == [{"role": "user", "content": row["question"]}]
    rest: Any = {key: value for key, value in row.items() if key not in line and not (plain and key == "prompt")}
    return {**line, **rest}


def _warn(failures: Failures, panel: Panel, rows: int) -> None:
    if failures:
        first = failures.first()
        log.warning(
            "refine: %d of %d rows failed and keep their answer (failed.jsonl), the first: row %s in %s: %s",
            len(failures), rows, first["id"], first["stage"], first["reason"],
        )  # fmt: skip
    for name, count in panel.unusable.items():
        if count:
            log.warning("refine: %d scores of judge %s were unusable and counted as 0", count, name)
    if panel.flagged:
        row_id, words = next(iter(panel.flagged.items()))
        log.warning(
            'refine: %d rows have words that speak to a judge ("judge_flag" in fused.jsonl), the first: row %s: %s',
            len(panel.flagged), row_id, words,
        )  # fmt: skip
