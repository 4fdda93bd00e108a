"""What `raft refine` runs: everything built from the settings, then the stages."""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from raft.errors import InputError
from raft.progress import say
from raft.prompts import WORDINGS, Message, Wording
from raft.refine.lines import FailedLine, FusedRow, JudgeLine, TextLine
from raft.refine.parts import merge_parts
from raft.refine.summary import summary_text
from raft.rows import Row
from raft.runs import Run, read_json, read_jsonl
from raft.settings import Plan, save_config
from raft.settings.files import to_yaml

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raft.refine.roles import Roles


def refine_run(plan: Plan, preview: int = 0, *, retry_failed: bool = False, ray_workers: int = 0) -> None:
    """Refines the plan's rows into `run.refine_dir`; with `preview` shows that many rows and writes nothing.

    The settings go to config.yaml of the run. What an earlier refinement left there and still fits is used, failures
    too, unless `retry_failed`: those that may pass, such as a lost connection, are not kept anyway. ray_workers: worker
    processes of a Ray cluster that do the work; 0: this process does. Says before what all rows may cost, and prints
    what came of them.
    """
    config, run, rows = plan.config, plan.run, plan.rows

    from raft.refine.pipeline import refine, refine_rows
    from raft.refine.roles import Roles

    settings = config.refine
    roles = Roles(settings, plan.model)
    _check_template(rows, roles.tokenizer, WORDINGS[settings.prompts], plan.data)
    roles.load()
    try:
        if preview:
            _say_estimate(plan, roles, retry_failed)  # of all rows
            with tempfile.TemporaryDirectory(prefix="raft-preview-") as folder:
                shown = rows[:preview]
                fused = refine(shown, roles.models, Run(folder), settings, seed=config.seed, progress=False)
                print(preview_text(shown, fused, Path(folder), WORDINGS[settings.prompts]))
            return
        merge_parts(run.refine_dir)  # what a run over Ray that was killed has left
        _say_estimate(plan, roles, retry_failed)
        # Only now: a refused refinement leaves nothing behind, and one that is cut short no rows that others made.
        save_config(config, run.config_path)
        for name in ("fused.jsonl", "diagnostics.json"):
            (run.refine_dir / name).unlink(missing_ok=True)
        if ray_workers:
            from raft.refine.scale import refine_on_ray

            refine_on_ray(plan, ray_workers, retry_failed=retry_failed)
            retry_failed = False  # the workers have
        refined = refine_rows(
            rows, roles.models, run, settings, seed=config.seed, nll=roles.nll, retry_failed=retry_failed
        )
    finally:
        roles.close()
    share = 100 * refined.kept / refined.rows
    print(f"refined {refined.rows} rows, kept {refined.kept} ({share:.1f} %): {run.refine_dir / 'fused.jsonl'}")
    reasons = read_json(run.refine_dir / "diagnostics.json")["reasons"]
    print(summary_text(refined.stages, reasons, made_here=not ray_workers))


def _say_estimate(plan: Plan, roles: "Roles", retry_failed: bool) -> None:
    """To stderr, what all rows would cost, less what is stored."""
    from raft.refine.estimate import estimate, estimate_lines

    config, path = plan.config, plan.run.config_path
    found = estimate(
        plan.rows, roles.models, config.refine, roles.tokenizer, plan.run.refine_dir,
        seed=config.seed,
        retry_failed=retry_failed,
        same_settings=path.exists() and path.read_text(encoding="utf-8") == to_yaml(asdict(config)),
    )  # fmt: skip
    for line in estimate_lines(found):
        say(line, sys.stderr)


def _check_template(rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", wording: Wording, path: str) -> None:
    """InputError where the chat template refuses a row: one of each sequence of roles is rendered."""
    from raft.refine.rewrite import rewrite_chat, template_options
    from raft.rendering import chat_text

    for row in {tuple(message["role"] for message in row["prompt"]): row for row in reversed(rows)}.values():
        try:
            chat_text(tokenizer, rewrite_chat(row, wording), **template_options(row))
        except InputError as error:
            raise InputError(f"{path}, row {row['id']!r}: {error}") from error


def preview_text(rows: Sequence[Row], fused: list[FusedRow], folder: Path, wording: Wording) -> str:
    """Every prompt with what came of it, row by row. `folder` is the run that refined the rows."""
    from raft.refine.fuse import REFERENCE, fuse_chat
    from raft.refine.rewrite import rewrite_chat

    refine_dir = Run(folder).refine_dir
    candidates: list[TextLine] = read_jsonl(refine_dir / "fuse.jsonl")
    judged: list[JudgeLine] = read_jsonl(refine_dir / "judge.jsonl")
    failures: list[FailedLine] = read_jsonl(refine_dir / "failed.jsonl")
    verdicts: dict[tuple[str, int], dict[str, float]] = {}
    for verdict in judged:
        verdicts.setdefault((verdict["id"], verdict["round"]), {})[verdict["judge"]] = verdict["score"] or 0.0
    failed = {line["id"]: line for line in failures}
    parts = []
    for row, line in zip(rows, fused, strict=True):
        parts += [f"=== row {row['id']}", "--- rewrite, prompt", _chat(rewrite_chat(row, wording))]
        tried = [candidate for candidate in candidates if candidate["id"] == row["id"]]
        rewritten = line["rewritten"]
        if rewritten is not None:
            similarity = "none" if line["similarity"] is None else f"{line['similarity']:.3f}"
            against = ", ".join(line["rejected"]["rewrite"])
            parts += ["--- rewrite, output", rewritten, f"--- similarity {similarity}{_against(against)}"]
            if tried:
                parts += ["--- fuse, prompt", _chat(fuse_chat(row, rewritten, wording))]
        against_fused = iter(line["rejected"]["fuse"])
        # No text is judged twice: its scores are under the round in which it first came, 0 for the rewriting.
        came = {rewritten: 0}
        for candidate in tried:
            scores = verdicts.get((row["id"], came.setdefault(candidate["text"], candidate["round"])), {})
            shown = _scores(scores)
            shown += _against("" if candidate["failed"] else ", ".join(next(against_fused, [])))
            parts += [
                f"--- fuse, output of round {candidate['round']} ({candidate['failed'] or shown})",
                candidate["text"] or "",
            ]
        if (row["id"], REFERENCE) in verdicts:
            parts.append(f"--- the reference itself ({_scores(verdicts[row['id'], REFERENCE])})")
        if row["id"] in failed:
            parts.append(f"--- failed in {failed[row['id']]['stage']}: {failed[row['id']]['reason']}")
        parts += [f"--- {'fused answer' if line['kept'] else 'the answer stays'}", line["fused_answer"], ""]
    return "\n".join(parts)


def _scores(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {score:.2f}" for name, score in scores.items())


def _against(reasons: str) -> str:
    return f"; not used: {reasons}" if reasons else ""


def _chat(chat: list[Message]) -> str:
    return "\n".join(f"[{message['role']}] {message['content']}" for message in chat)
