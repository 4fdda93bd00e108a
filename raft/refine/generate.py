"""Batches of chats to texts, in a way that a restart cannot change.

A request's random numbers come from the seed of its call and its place in it, so both are fixed by the order of the input:
batch b is always rows b*B .. b*B+B-1 with a seed of its own. Where a kill left a batch half done, the whole of it is
generated again, which gives every row the text it would have had, and only the missing lines are appended.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from raft.engines import Completion, Engine, Sampling
from raft.errors import ConfigError, EngineError, ModelError
from raft.prompts import Message
from raft.refine.store import Store
from raft.rendering import chat_ids, output

Item = TypeVar("Item")
Result = TypeVar("Result")

# Not the fault of a row: with these, every other row would fail too.
RUN_ERRORS = (EngineError, ModelError, ConfigError)


@dataclass(frozen=True)
class Job:
    """One text wanted from the engine."""

    row_id: str
    key: str
    chat: list[Message]
    options: Mapping[str, Any] = field(default_factory=dict)  # of the chat template: tools and the like
    extra: Mapping[str, Any] = field(default_factory=dict)  # goes into the stored line, for people who read it


@dataclass(frozen=True)
class Limits:
    batch_size: int
    max_model_len: int  # tokens of prompt and completion together


@dataclass(frozen=True)
class Batch:
    """The stored lines of a batch's jobs, in order, with what it took to make those that were missing."""

    lines: list[dict[str, Any]]  # "text" is None where "failed" says why
    fresh_rows: int
    fresh_tokens: int


def outputs(
    jobs: Sequence[Job],
    engine: Callable[[], Engine],
    store: Store,
    sampling: Sampling,
    limits: Limits,
    *stage: str | int,
) -> Iterator[Batch]:
    """The texts of all jobs, batch by batch: from `store` where it has them, else generated and appended to it.

    `stage` names what the batches are for, so that no two stages draw the same numbers.
    """
    for number, batch in enumerate(batches(jobs, limits.batch_size)):
        lines = [_stored(store, job, limits) for job in batch]
        fresh = [i for i, line in enumerate(lines) if line is None]
        tokens = 0
        if fresh:
            made = _generate(engine(), batch, sampling, limits, (*stage, number))
            for i in fresh:
                lines[i], lasting = made[i]
                tokens += made[i][0]["tokens"]
                if lasting:
                    store.add(made[i][0])
        yield Batch([line for line in lines if line is not None], len(fresh), tokens)


def batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def isolate(call: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]) -> list[Result | Exception]:
    """call(items), which gives one result an item; where it raises, each half alone, so that a bad item fails by itself."""
    try:
        results = list(call(items))
        if len(results) != len(items):
            raise RuntimeError(f"expected {len(items)} results, got {len(results)}")
        return [*results]
    except RUN_ERRORS:
        raise
    except Exception as error:  # noqa: BLE001  # whatever an engine raises, the other rows go on
        if len(items) == 1:
            return [error]
    half = len(items) // 2
    return isolate(call, items[:half]) + isolate(call, items[half:])


def reason(error: Exception) -> str:
    """One line that says what was raised."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else text[:297] + "..."


def _stored(store: Store, job: Job, limits: Limits) -> dict[str, Any] | None:
    line = store.get(job.row_id, job.key)
    # A text is what it is, but a text that did not fit may fit into another context.
    if line is not None and line["failed"] and line["max_model_len"] != limits.max_model_len:
        return None
    return line


def _generate(
    engine: Engine, jobs: Sequence[Job], sampling: Sampling, limits: Limits, stage: tuple[str | int, ...]
) -> list[tuple[dict[str, Any], bool]]:
    """The line of each job, and whether it would be the same the next time (an exception might have been bad luck)."""
    # The context of the model itself may be shorter than the one asked for.
    room = min(limits.max_model_len, getattr(engine, "max_model_len", limits.max_model_len))
    made: dict[int, tuple[dict[str, Any], bool]] = {}
    asked: list[tuple[int, list[int]]] = []
    for i, job in enumerate(jobs):
        try:
            ids = chat_ids(engine.tokenizer, job.chat, **job.options)
        except RUN_ERRORS:
            raise
        except Exception as error:  # noqa: BLE001  # a template may refuse a chat, say one with a system message
            made[i] = _failure(job, limits, reason(error)), False
            continue
        if len(ids) < room:
            asked.append((i, ids))
        else:
            why = f"the prompt has {len(ids)} tokens, expected fewer than {room} (max_model_len)"
            made[i] = _failure(job, limits, why), True

    def call(part: Sequence[tuple[int, list[int]]]) -> Sequence[Completion]:
        seed = _seed(sampling.seed, *stage, part[0][0], len(part))
        return engine.generate([ids for _, ids in part], replace(sampling, seed=seed))

    completions = isolate(call, asked) if asked else []
    for (i, _), completion in zip(asked, completions, strict=True):
        if isinstance(completion, Exception):
            made[i] = _failure(jobs[i], limits, reason(completion)), False
        else:
            made[i] = _line(engine, jobs[i], completion, sampling, limits), True
    return [made[i] for i in range(len(jobs))]


def _line(engine: Engine, job: Job, completion: Completion, sampling: Sampling, limits: Limits) -> dict[str, Any]:
    tokens = len(completion.token_ids)
    if completion.finish_reason == "length":
        limit = "max_tokens" if tokens >= sampling.max_tokens else "the end of the context (max_model_len)"
        return _failure(job, limits, f"the output was cut at {limit}, after {tokens} tokens", tokens)
    thought, text = output(engine.tokenizer, completion.token_ids)
    if not text:
        return _failure(job, limits, "the output is empty", tokens)
    line = {"id": job.row_id, "key": job.key, **job.extra, "text": text, "tokens": tokens, "failed": None}
    return line if thought is None else {**line, "thought": thought}


def _failure(job: Job, limits: Limits, why: str, tokens: int = 0) -> dict[str, Any]:
    line = {"id": job.row_id, "key": job.key, **job.extra, "text": None, "tokens": tokens, "failed": why}
    return {**line, "max_model_len": limits.max_model_len}


def _seed(*parts: str | int) -> int:
    """A seed in [0, 2**31), the same in every process."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
