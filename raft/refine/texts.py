"""The texts of a stage: from its store where it has them, else from a chat model.

A request draws from a seed of its own, which follows from the seed of the run, the stage, the row's id and the attempt,
and from nothing else. So a text does not depend on the rows beside it, on the size of the batches or on restarts, and a
restart asks for the missing texts alone. The seed is part of the text's key.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, overload

from raft.chat import ChatModel, ChatRequest, Failure, Reply
from raft.digest import derived_seed
from raft.isolate import batches
from raft.prompts import Message
from raft.refine.context import RefineContext
from raft.refine.lines import TextLine
from raft.refine.store import row_key
from raft.settings import RefineSettings

Item = TypeVar("Item")


@dataclass(frozen=True)
class Job:
    """One text wanted for a row."""

    row_id: str
    chat: Callable[[], list[Message]]
    """Called when the request is made, so that the prompts of all rows are not in memory at once."""
    options: Mapping[str, object] = field(default_factory=dict)  # of the chat template: tools and the like
    round: int | None = None  # of the fusion


@dataclass(frozen=True)
class TextBatch:
    """What came of a batch's jobs, each in one of the two, with what it took to make what was not in the store."""

    texts: dict[str, str]  # row id -> text
    failed: dict[str, str]  # row id -> why there is no text
    made: list[str]  # ids of the rows whose text, or failure, was not in the store
    fresh_tokens: int

    @property
    def fresh_rows(self) -> int:
        return len(self.made)


def texts(
    context: RefineContext, stage: str, model: ChatModel, jobs: Sequence[Job], temperature: float
) -> Iterator[TextBatch]:
    """The texts of all jobs, one a row, in batches of the input's order. A text is on disk as soon as it is there.

    All that is missing is asked for at once; a batch is given when the last of its texts is there.
    """
    settings, store = context.settings, context.texts[stage]
    keys = [text_key(model.name, text_request(settings, context.seed, stage, job, temperature)) for job in jobs]
    missing: list[int] = []
    retries: dict[int, int] = {}
    for i, job in enumerate(jobs):
        line = store.get(job.row_id, keys[i])
        if is_missing(line, settings, context.retry_failed):
            missing.append(i)
            if line is not None and context.retry_failed:
                retries[i] = line.get("retry", 0) + 1

    def request(place: int) -> ChatRequest:
        i = missing[place]
        return text_request(settings, context.seed, stage, jobs[i], temperature, retries.get(i, 0))

    replies = model.replies(Lazily(request, len(missing)))
    waiting, passing = set(missing), dict[int, TextLine]()  # passing: failures that no store has
    fresh = set(missing)
    for batch in batches(range(len(jobs)), settings.batch_size):
        while not waiting.isdisjoint(batch):
            place, reply = next(replies)
            i = missing[place]
            line = _line(jobs[i], keys[i], reply, settings.max_model_len)
            if i in retries:
                line["retry"] = retries[i]
            if isinstance(reply, Reply) or reply.lasting:
                store.add(line)
            else:
                passing[i] = line
            waiting.remove(i)
        done = [passing.pop(i, None) or store.get(jobs[i].row_id, keys[i]) for i in batch]
        lines = [line for line in done if line is not None]
        made = [line for i, line in zip(batch, lines, strict=True) if i in fresh]
        yield TextBatch(
            {line["id"]: line["text"] for line in lines if line["text"] is not None},
            {line["id"]: line["failed"] for line in lines if line["failed"] is not None},
            [line["id"] for line in made],
            sum(line["tokens"] for line in made),
        )


def is_missing(line: TextLine | None, settings: RefineSettings, retry_failed: bool) -> bool:
    """Whether a text is asked for. line: what the store has of it."""
    if line is None or not line["failed"]:
        return line is None
    # One that did not fit may fit into another context.
    return retry_failed or line.get("max_model_len") != settings.max_model_len


def text_request(
    settings: RefineSettings, seed: int, stage: str, job: Job, temperature: float, retry: int = 0
) -> ChatRequest:
    """seed: of the run."""
    own = text_seed(seed, stage, job.row_id, job.round or 1, retry)
    return ChatRequest(job.chat(), own, temperature, settings.max_tokens, job.options)


class Lazily(Sequence[Item]):
    """A sequence whose items are made each time they are asked for."""

    def __init__(self, make: Callable[[int], Item], length: int):
        self._make, self._length = make, length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Item]: ...
    def __getitem__(self, place: int | slice) -> Item | Sequence[Item]:
        if isinstance(place, slice):
            return [self._make(i) for i in range(*place.indices(self._length))]
        if not 0 <= place < self._length:
            raise IndexError(place)
        return self._make(place)


def text_seed(seed: int, stage: str, row_id: str, attempt: int, retry: int = 0) -> int:
    """In [0, 2**63), the same in every process. seed: of the run; attempt: from 1 on; retry: after failures."""
    return derived_seed([seed, stage, row_id, attempt, *([retry] if retry else [])])


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
