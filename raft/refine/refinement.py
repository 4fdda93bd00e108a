"""What `raft refine` runs: everything built from the settings, then the stages."""

import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from raft.errors import InputError
from raft.prompts import WORDINGS, Message, Wording
from raft.refine.lines import FailedLine, FusedRow, JudgeLine, TextLine
from raft.rows import Row
from raft.runs import Run, read_jsonl
from raft.settings import Plan, RefineSettings, save_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from raft.engines import Engine


def refine_run(plan: Plan, preview: int = 0, *, retry_failed: bool = False) -> None:
    """Refines the plan's rows into `run.refine_dir`; with `preview` shows that many rows and writes nothing.

    The settings go to config.yaml of the run. What an earlier refinement left there and still fits is used, failures
    too, unless `retry_failed`: those that may pass, such as a lost connection, are not kept anyway.
    """
    config, run, rows = plan.config, plan.run, plan.rows

    from raft.chat.pool import LOCAL, ChatPool
    from raft.models import load_tokenizer
    from raft.refine.context import Models
    from raft.refine.embed import load_embedder
    from raft.refine.pipeline import refine

    settings = config.refine
    tokenizer = load_tokenizer(plan.model)
    _check_template(rows, tokenizer, WORDINGS[settings.prompts], plan.data)
    embedder = load_embedder(settings.embedding_model)
    own = _OwnModel(plan.model, tokenizer, settings)
    if LOCAL in (settings.rewriter, settings.fuser, *settings.judges):
        own.model  # noqa: B018  # now, so that weights that cannot be loaded leave no run folder
    pool = ChatPool(settings, plan.model, own.engine)
    models = Models.named(settings, pool, embedder)

    def nll(prompts: Sequence[Sequence[Message]], answers: Sequence[str]) -> list[float | None]:
        pool.release()
        return own.nll(prompts, answers)

    try:
        if preview:
            with tempfile.TemporaryDirectory(prefix="raft-preview-") as folder:
                shown = rows[:preview]
                fused = refine(shown, models, Run(folder), settings, seed=config.seed, progress=False)
                print(preview_text(shown, fused, Path(folder), WORDINGS[settings.prompts]))
            return
        # Only now: a refused refinement leaves nothing behind, and one that is cut short no rows that others made.
        save_config(config, run.config_path)
        for name in ("fused.jsonl", "diagnostics.json"):
            (run.refine_dir / name).unlink(missing_ok=True)
        fused = refine(rows, models, run, settings, seed=config.seed, nll=nll, retry_failed=retry_failed)
    finally:
        pool.close()
    kept = sum(row["kept"] for row in fused)
    print(f"refined {len(fused)} rows, kept {kept} ({100 * kept / len(fused):.1f} %): {run.refine_dir / 'fused.jsonl'}")


class _OwnModel:
    """The model that is refined for, loaded when it is first needed: all roles may be with servers."""

    def __init__(self, path: str, tokenizer: "PreTrainedTokenizerBase", settings: RefineSettings):
        self._path, self._tokenizer, self._settings = path, tokenizer, settings

    @cached_property
    def model(self) -> "PreTrainedModel":
        import torch

        from raft.models import load_model

        return load_model(self._path).to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def engine(self) -> "Engine":
        from raft.engines import make_engine

        settings = self._settings
        return make_engine(settings.engine, self.model, self._tokenizer, max_model_len=settings.max_model_len)

    def nll(self, prompts: Sequence[Sequence[Message]], answers: Sequence[str]) -> list[float | None]:
        """Mean negative log-likelihood a token of each answer under the model, in nats."""
        from raft.evaluate.likelihood import log_likelihoods

        found = log_likelihoods(self.model, self._tokenizer, prompts, answers)
        return [None if value is None else -value for value in found]


def _check_template(rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", wording: Wording, path: str) -> None:
    """InputError where the chat template refuses a row: one of each sequence of roles is rendered."""
    from raft.refine.rewrite import rewrite_chat, template_options
    from raft.rendering import chat_text

    for row in {tuple(message["role"] for message in row["prompt"]): row for row in reversed(rows)}.values():
        try:
            chat_text(tokenizer, rewrite_chat(row, wording), **template_options(row))
        except InputError as error:
            raise InputError(f"{path}, row {row['id']!r}: {error}") from error


def preview_text(rows: list[Row], fused: list[FusedRow], folder: Path, wording: Wording) -> str:
    """Every prompt with what came of it, row by row. `folder` is the run that refined the rows."""
    from raft.refine.fuse import fuse_chat
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
