"""Self-conditioned rewriting: the model under training says the reference answer in its own words (Eq. 1)."""

from collections.abc import Callable, Sequence
from typing import Any

from raft.engines import Engine, Sampling
from raft.prompts import WORDINGS, Message, Wording
from raft.refine.generate import Job, Limits, outputs
from raft.refine.progress import StageProgress
from raft.refine.store import Failures, Store, row_key
from raft.rendering import chat_options
from raft.rows import Row
from raft.settings import RefineSettings


def rewrite(
    rows: Sequence[Row],
    engine: Callable[[], Engine],
    store: Store,
    failures: Failures,
    settings: RefineSettings,
    *,
    model_id: str,
    seed: int,
    bar: StageProgress,
) -> dict[str, str]:
    """Row id -> y~ ~ p(. | x, y), for every row whose rewriting is usable; the others go to `failures`."""
    parameters = {"temperature": settings.rewrite_temperature, "max_tokens": settings.max_tokens, "seed": seed}
    wording = WORDINGS[settings.prompts]
    jobs = []
    for row in rows:
        chat, options = rewrite_chat(row, wording), template_options(row)
        jobs.append(Job(row["id"], row_key(model_id, parameters | options, chat), chat, options))
    sampling = Sampling(temperature=settings.rewrite_temperature, max_tokens=settings.max_tokens, seed=seed)
    rewritten: dict[str, str] = {}
    for batch in outputs(jobs, engine, store, sampling, Limits(settings.batch_size, settings.max_model_len), "rewrite"):
        for line in batch.lines:
            if line["failed"]:
                failures.add(line["id"], "rewrite", line["failed"])
            else:
                rewritten[line["id"]] = line["text"]
        bar.add_rows(len(batch.lines), fresh=batch.fresh_rows, tokens=batch.fresh_tokens, kept=len(rewritten))
    return rewritten


def rewrite_chat(row: Row, wording: Wording) -> list[Message]:
    return in_chat(row, wording.rewrite(row["question"], row["answer"]))


def template_options(row: Row) -> dict[str, Any]:
    """What a row asks of the chat template beside what every row does; nothing for most rows."""
    return {name: value for name, value in chat_options(row).items() if (name, value) != ("enable_thinking", False)}


def in_chat(row: Row, content: str) -> list[Message]:
    """The row's chat with `content` for its last user turn: system message and earlier turns are what they are in training."""
    prompt = row["prompt"]
    last = max(i for i, message in enumerate(prompt) if message["role"] == "user")
    return [*prompt[:last], Message(role="user", content=content), *prompt[last + 1 :]]
