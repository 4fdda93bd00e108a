"""Self-conditioned rewriting: the model under training says the reference answer in its own words (Eq. 1)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from raft.prompts import Message, Wording
from raft.refine.context import RefineContext
from raft.refine.texts import Job, texts
from raft.rendering import chat_options
from raft.rows import Row


def rewrite(context: RefineContext, rows: Sequence[Row]) -> dict[str, str]:
    """Row id -> y~ ~ p(. | x, y), for every row whose rewriting is usable; the others go to the failures."""
    wording = context.wording
    jobs = [Job(row["id"], partial(rewrite_chat, row, wording), template_options(row)) for row in rows]
    rewritten: dict[str, str] = {}
    model, temperature = context.models.rewriter, context.settings.rewrite_temperature
    with context.stages.slice("rewrite", len(rows), per_call=True, model=model) as bar:
        for batch in texts(context, "rewrite", model, jobs, temperature):
            rewritten |= batch.texts
            for row_id, why in batch.failed.items():
                context.failures.add(row_id, "rewrite", why)
            bar.add_rows(
                len(batch.texts) + len(batch.failed),
                fresh=batch.fresh_rows,
                tokens=batch.fresh_tokens,
                kept=len(rewritten),
                failed=len(batch.failed),
                made=batch.made,
            )
    return rewritten


def rewrite_chat(row: Row, wording: Wording) -> list[Message]:
    return in_chat(row, wording.rewrite(row["question"], row["answer"]))


def template_options(row: Row) -> dict[str, Any]:
    """What a row asks of the chat template beside what every row does; nothing for most rows."""
    return {name: value for name, value in chat_options(row).items() if (name, value) != ("enable_thinking", False)}


def in_chat(row: Row, content: str) -> list[Message]:
    """The row's chat with `content` for its last user turn; system message and earlier turns stay as in training."""
    prompt = row["prompt"]
    last = max(i for i, message in enumerate(prompt) if message["role"] == "user")
    return [*prompt[:last], Message(role="user", content=content), *prompt[last + 1 :]]
