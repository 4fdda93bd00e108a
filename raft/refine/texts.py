"""The texts of a stage: from its store where it has them, else from a chat model.

A request draws from a seed of its own, which follows from the seed of the run, the stage, the row's id and the attempt,
and from nothing else. So a text does not depend on the rows beside it, on the size of the batches or on restarts, and a
restart asks for the missing texts alone. The seed is part of the text's key.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from raft.chat import ChatModel, ChatRequest, Failure, Reply
from raft.isolate import batches
from raft.prompts import Message
from raft.refine.context import RefineContext
from raft.refine.lines import TextLine
from raft.refine.store import row_key


@dataclass(frozen=True)
class Job:
    """One text wanted for a row."""

    row_id: str
    chat: list[Message]
    options: Mapping[str, object] = field(default_factory=dict)  # of the chat template: tools and the like
    round: int | None = None  # of the fusion


@dataclass(frozen=True)
class TextBatch:
    """What came of a batch's jobs, each in one of the two, with what it took to make what was not in the store."""

    texts: dict[str, str]  # row id -> text
    failed: dict[str, str]  # row id -> why there is no text
    fresh_rows: int
    fresh_tokens: int


def texts(
    context: RefineContext, stage: str, model: ChatModel, jobs: Sequence[Job], temperature: float
) -> Iterator[TextBatch]:
    """The texts of all jobs, one a row, in batches of the input's order. A text is on disk as soon as it is there.

    All that is missing is asked for at once; a batch is given when the last of its texts is there.
    """
    settings, store = context.settings, context.texts[stage]
    requests = {
        job.row_id: ChatRequest(
            job.chat,
            text_seed(context.seed, stage, job.row_id, job.round or 1),
            temperature,
            settings.max_tokens,
            job.options,
        )
        for job in jobs
    }
    keys = {row_id: text_key(model.name, request) for row_id, request in requests.items()}
    lines: dict[str, TextLine | None] = {}
    retries: dict[str, int] = {}
    for job in jobs:
        line = lines[job.row_id] = store.get(job.row_id, keys[job.row_id])
        if line is None or line["failed"] is None:
            continue
        if context.retry_failed:
            retries[job.row_id] = line.get("retry", 0) + 1
            seed = text_seed(context.seed, stage, job.row_id, job.round or 1, retries[job.row_id])
            requests[job.row_id] = replace(requests[job.row_id], seed=seed)
        # One that did not fit may fit into another context.
        if context.retry_failed or line["max_model_len"] != settings.max_model_len:
            lines[job.row_id] = None
    missing = [job for job in jobs if lines[job.row_id] is None]
    fresh = {job.row_id for job in missing}
    replies = model.replies([requests[job.row_id] for job in missing])
    for batch in batches(jobs, settings.batch_size):
        while any(lines[job.row_id] is None for job in batch):
            place, reply = next(replies)
            job = missing[place]
            line = _line(job, keys[job.row_id], reply, settings.max_model_len)
            if job.row_id in retries:
                line["retry"] = retries[job.row_id]
            if isinstance(reply, Reply) or reply.lasting:
                store.add(line)
            lines[job.row_id] = line
        done = [found for job in batch if (found := lines[job.row_id]) is not None]
        made = [line for line in done if line["id"] in fresh]
        yield TextBatch(
            {line["id"]: line["text"] for line in done if line["text"] is not None},
            {line["id"]: line["failed"] for line in done if line["failed"] is not None},
            len(made),
            sum(line["tokens"] for line in made),
        )


def text_seed(seed: int, stage: str, row_id: str, attempt: int, retry: int = 0) -> int:
    """In [0, 2**63), the same in every process. seed: of the run; attempt: from 1 on; retry: after failures."""
    parts = [seed, stage, row_id, attempt, *([retry] if retry else [])]
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def text_key(model: str, request: ChatRequest) -> str:
    """Key of a text in its store: all that decides what the text is.

    Keys of earlier versions have the run's "seed" in the place of "request_seed". Their texts depended on their batch,
    so that no such text is taken for one of these.
    """
    parameters = {
        "temperature": request.temperature,
        "max_tokens": request.max_tokens,
        "request_seed": request.seed,
        **request.options,
    }
    return row_key(model, parameters, request.messages)


def _line(job: Job, key: str, reply: Reply | Failure, max_model_len: int) -> TextLine:
    """What is stored of a job."""
    line: TextLine = {"id": job.row_id, "key": key, "text": None, "tokens": reply.tokens, "failed": None}
    if isinstance(reply, Failure):
        line["failed"], line["max_model_len"] = reply.reason, max_model_len
    else:
        line["text"] = reply.text
        if reply.thought is not None:
            line["thought"] = reply.thought
    if job.round is not None:
        line["round"] = job.round
    return line
