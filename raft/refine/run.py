"""What `raft refine` runs: everything built from the settings, then the stages."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raft.errors import InputError
from raft.prompts import WORDINGS, Message, Wording
from raft.rows import Row
from raft.runs import Run, read_jsonl
from raft.settings import Plan, save_config

log = logging.getLogger(__name__)


def refine_run(plan: Plan, preview: int = 0) -> None:
    """Refines the plan's rows into `run.refine_dir`; with `preview` shows that many rows and writes nothing.

    The settings go to config.yaml of the run. What an earlier refinement left there and still fits is used.
    """
    config, run, rows = plan.config, plan.run, plan.rows
    fusion_model = config.refine.fusion_model

    import torch

    from raft.engines import make_engine
    from raft.evaluate.likelihood import log_likelihoods
    from raft.models import check_model, load_model, load_tokenizer
    from raft.refine.embed import load_embedder
    from raft.refine.fingerprint import fingerprint
    from raft.refine.pipeline import refine

    settings = config.refine
    fusion: dict[str, Any] = {}
    if fusion_model != "local":
        fusion["fusion_id"] = fingerprint(check_model(fusion_model))
    tokenizer = load_tokenizer(plan.model)
    _check_template(rows, tokenizer, WORDINGS[settings.prompts], plan.data)
    embedder = load_embedder(settings.embedding_model)
    model = load_model(plan.model).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    engine = make_engine(settings.engine, model, tokenizer, max_model_len=settings.max_model_len)
    engines = [engine]

    def fusion_engine() -> Any:
        if len(engines) == 1:
            engine.release()
            fusing = load_tokenizer(fusion_model)
            engines.append(make_engine(settings.engine, fusion_model, fusing, max_model_len=settings.max_model_len))
        return engines[1]

    def nll(prompts: Any, answers: Any) -> Any:
        for each in engines:
            each.release()
        found = log_likelihoods(model, tokenizer, prompts, answers)
        return [None if value is None else -value for value in found]

    if fusion:
        fusion["fusion_engine"] = fusion_engine
    common = {"model_id": fingerprint(plan.model), "embedder": embedder, "seed": config.seed, **fusion}
    try:
        if preview:
            with tempfile.TemporaryDirectory(prefix="raft-preview-") as folder:
                shown = rows[:preview]
                fused = refine(shown, engine, Run(folder), settings, progress=False, **common)
                print(preview_text(shown, fused, Path(folder), WORDINGS[settings.prompts]))
            return
        # Only now: a refused refinement leaves nothing behind, and one that is cut short no rows that others made.
        save_config(config, run.config_path)
        for name in ("fused.jsonl", "diagnostics.json"):
            (run.refine_dir / name).unlink(missing_ok=True)
        fused = refine(rows, engine, run, settings, nll=nll, **common)
    finally:
        for each in reversed(engines):
            each.close()
    kept = sum(row["kept"] for row in fused)
    print(f"refined {len(fused)} rows, kept {kept} ({100 * kept / len(fused):.1f} %): {run.refine_dir / 'fused.jsonl'}")


def _check_template(rows: Sequence[Row], tokenizer: Any, wording: Wording, path: Any) -> None:
    """InputError where the chat template refuses a row: one of each sequence of roles is rendered."""
    from raft.refine.rewrite import rewrite_chat, template_options
    from raft.rendering import chat_text

    for row in {tuple(message["role"] for message in row["prompt"]): row for row in reversed(rows)}.values():
        try:
            chat_text(tokenizer, rewrite_chat(row, wording), **template_options(row))
        except InputError as error:
            raise InputError(f"{path}, row {row['id']!r}: {error}") from error


def preview_text(rows: list[Row], fused: list[dict[str, Any]], folder: Path, wording: Wording) -> str:
    """Every prompt with what came of it, row by row. `folder` is the run that refined the rows."""
    from raft.refine.fuse import fuse_chat
    from raft.refine.rewrite import rewrite_chat

    refine_dir = Run(folder).refine_dir
    candidates = read_jsonl(refine_dir / "fuse.jsonl")
    verdicts = {(line["id"], line["round"]): line["scores"] for line in read_jsonl(refine_dir / "judge.jsonl")}
    failed = {line["id"]: line for line in read_jsonl(refine_dir / "failed.jsonl")}
    parts = []
    for row, line in zip(rows, fused, strict=True):
        parts += [f"=== row {row['id']}", "--- rewrite, prompt", _chat(rewrite_chat(row, wording))]
        if line["rewritten"] is not None:
            similarity = "none" if line["similarity"] is None else f"{line['similarity']:.3f}"
            against = ", ".join(line["rejected"]["rewrite"])
            parts += ["--- rewrite, output", line["rewritten"], f"--- similarity {similarity}{_against(against)}"]
        against_fused = iter(line["rejected"]["fuse"])
        tried = [candidate for candidate in candidates if candidate["id"] == row["id"]]
        if tried:
            parts += ["--- fuse, prompt", _chat(fuse_chat(row, line["rewritten"], wording))]
        # No text is judged twice: its scores are under the round in which it first came, 0 for the rewriting.
        came: dict[str | None, int] = {line["rewritten"]: 0}
        for candidate in tried:
            scores = verdicts.get((row["id"], came.setdefault(candidate["text"], candidate["round"])), {})
            shown = ", ".join(f"{name} {score:.2f}" for name, score in scores.items())
            shown += _against("" if candidate["failed"] else ", ".join(next(against_fused, [])))
            parts += [
                f"--- fuse, output of round {candidate['round']} ({candidate['failed'] or shown})",
                candidate["text"] or "",
            ]
        if row["id"] in failed:
            parts.append(f"--- failed in {failed[row['id']]['stage']}: {failed[row['id']]['reason']}")
        parts += [f"--- {'fused answer' if line['kept'] else 'the answer stays'}", line["fused_answer"], ""]
    return "\n".join(parts)


def _against(reasons: str) -> str:
    return f"; not used: {reasons}" if reasons else ""


def _chat(chat: list[Message]) -> str:
    return "\n".join(f"[{message['role']}] {message['content']}" for message in chat)
