"""Stage 1 from rows to fused rows, every stage on disk as it goes."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from raft.refine.slices import SLICE_ROWS, has_wording, slices
from raft.refine.store import Failures, write_lines
from raft.rows import Row, normalize_rows
from raft.runs import Run, read_jsonl, write_json
from raft.runs.files import iter_jsonl
from raft.settings import RefineSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refined:
    """What came of a refinement."""

    rows: int
    kept: int
    stages: list[StageNumbers]


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
) -> list[FusedRow]:
    """`refine_rows` of any rows, which are checked: the lines of fused.jsonl, in input order."""
    checked = normalize_rows(rows, source="rows to refine")
    refine_rows(
        checked, models, run, settings, seed=seed, nll=nll, progress=progress, retry_failed=retry_failed,
    )  # fmt: skip
    fused: list[FusedRow] = read_jsonl(run.refine_dir / "fused.jsonl")
    return fused


def refine_rows(
    rows: Sequence[Row],
    models: Models,
    run: Run,
    settings: RefineSettings,
    *,
    seed: int = 0,
    nll: AnswerNLL | None = None,
    progress: bool = True,
    retry_failed: bool = False,
    slice_rows: int = SLICE_ROWS,
) -> Refined:
    """Writes rewrite, filter, fuse, judge, failed and fused.jsonl, the last in input order, and diagnostics.json.

    What an earlier call left in `run.refine_dir` is taken over where its key fits. `nll` adds the style shift to the
    diagnostics. retry_failed: asks again, with other seeds, for texts that failed in a way that would last. slice_rows:
    so many go through all stages at once, which changes no text. InputError where all rows failed.
    """
    check_judges(models.judges)
    folder = run.refine_dir
    fused_path = folder / "fused.jsonl"
    with open_context(folder, settings, models, seed=seed, progress=progress, retry_failed=retry_failed) as context:
        write_lines(fused_path, _fused_rows(context, rows, slice_rows))
    failures, panel = context.failures, context.panel
    failures.finish(row["id"] for row in rows)
    _warn(failures, panel, len(rows))
    diagnostics = diagnose(
        rows,
        iter_jsonl(fused_path),
        context.models.embedder,
        judges=[judge.name for judge in models.judges],
        unusable=panel.unusable,
        failed=len(failures),
        agreement=panel.agreement.alpha,
        nll=nll,
        progress=progress,
    )
    write_json(folder / "diagnostics.json", diagnostics)
    texts = sum(map(has_wording, rows))
    if texts and all(row["id"] in failures for row in rows if has_wording(row)):
        first = failures.first()
        raise InputError(
            f"{folder}: the refinement failed for all {texts} rows, row {first['id']} in {first['stage']}: "
            f"{first['reason']}; nothing is refined"
        )
    return Refined(diagnostics["rows"], diagnostics["kept"], context.stages.numbers)


def do_stages(
    context: RefineContext, rows: Sequence[Row]
) -> tuple[dict[str, str], dict[str, Assessment], dict[str, Fusion]]:
    """Rewritings, what is known of them, and fusions, each by row id; on disk as they are made. rows: of a slice."""
    texts = [row for row in rows if has_wording(row)]
    rewritten = rewrite(context, texts)
    context.models.make_room()
    rewritings = filter_rewritings(context, texts, rewritten)
    passed = [row for row in texts if row["id"] in rewritings and not rewritings[row["id"]].problems]
    fusions = fuse(context, passed, rewritten)
    context.models.make_room()
    return rewritten, rewritings, fusions


def _fused_rows(context: RefineContext, rows: Sequence[Row], slice_rows: int) -> Iterator[FusedRow]:
    """The fused row of each, made slice by slice."""
    context.stages.later = sum(map(has_wording, rows))
    for part in slices(rows, context.settings.batch_size, slice_rows):
        context.stages.later -= sum(map(has_wording, part))
        rewritten, rewritings, fusions = do_stages(context, part)
        for row in part:
            row_id = row["id"]
            line = _fused_row(row, rewritten.get(row_id), rewritings.get(row_id), fusions.get(row_id, Fusion()))
            if row_id in context.panel.flagged:
                line["judge_flag"] = context.panel.flagged[row_id]
            yield line


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
