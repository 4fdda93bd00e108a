"""A chat model out of an engine of this process, its tokenizer and its chat template."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from raft.chat.base import ChatRequest, Failure, Reply
from raft.engines.base import Completion, Engine, Sampling
from raft.isolate import RUN_ERRORS, batches, isolate, reason
from raft.rendering import chat_ids, output


class LocalChat:
    """Answers `batch_size` requests in one call of the engine."""

    def __init__(self, name: str, engine: Callable[[], Engine], *, batch_size: int = 64, max_model_len: int = 2048):
        """engine: called when the first request is asked; it may then make the engine, or give the one there is.
        max_model_len: tokens of prompt and reply together at most; the engine's own limit may be lower."""
        self.name = name
        self._engine = engine
        self._batch_size = batch_size
        self._max_model_len = max_model_len

    def replies(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Reply | Failure]]:
        """See `ChatModel.replies`: batch by batch in the order of the requests."""
        if not requests:
            return
        engine = self._engine()
        # The context of the model itself may be shorter than the one asked for.
        room = min(self._max_model_len, getattr(engine, "max_model_len", self._max_model_len))
        for places in batches(range(len(requests)), self._batch_size):
            asked: dict[Sampling, list[_Asked]] = {}  # one call of the engine has one way of sampling
            for place in places:
                found = _ask(engine, place, requests[place], room)
                if isinstance(found, Failure):
                    yield place, found
                else:
                    request = requests[place]
                    sampling = Sampling(temperature=request.temperature, max_tokens=request.max_tokens)
                    asked.setdefault(sampling, []).append(found)
            for sampling, group in asked.items():
                completions = isolate(partial(_generate, engine, sampling), group)
                for one, completion in zip(group, completions, strict=True):
                    yield one.place, _result(engine, completion, sampling)


class _Asked(NamedTuple):
    place: int
    ids: list[int]
    seed: int


def _generate(engine: Engine, sampling: Sampling, asked: Sequence[_Asked]) -> list[Completion]:
    return engine.generate([one.ids for one in asked], sampling, seeds=[one.seed for one in asked])


def _ask(engine: Engine, place: int, request: ChatRequest, room: int) -> _Asked | Failure:
    try:
        ids = chat_ids(engine.tokenizer, request.messages, **request.options)
    except RUN_ERRORS:
        raise
    except Exception as error:  # noqa: BLE001  # a template may refuse a chat, say one with a system message
        return Failure(reason(error), lasting=False)
    if len(ids) >= room:
        return Failure(f"the prompt has {len(ids)} tokens, expected fewer than {room} (max_model_len)", lasting=True)
    return _Asked(place, ids, request.seed)


def _result(engine: Engine, completion: Completion | Exception, sampling: Sampling) -> Reply | Failure:
    if isinstance(completion, Exception):
        return Failure(reason(completion), lasting=False)
    tokens = len(completion.token_ids)
    if completion.finish_reason == "length":
        limit = "max_tokens" if tokens >= sampling.max_tokens else "the end of the context (max_model_len)"
        return Failure(f"the output was cut at {limit}, after {tokens} tokens", lasting=True, tokens=tokens)
    thought, text = output(engine.tokenizer, completion.token_ids)
    if not text:
        return Failure("the output is empty", lasting=True, tokens=tokens)
    return Reply(text, tokens, thought)


def generate_text(
    engine: Engine, list_of_messages: Sequence[Sequence[Mapping[str, object]]], sampling: Sampling
) -> list[str]:
    """Chats in, answers out, cut and empty ones too: without thoughts before them, special tokens and outer white
    space."""
    prompts = [chat_ids(engine.tokenizer, messages) for messages in list_of_messages]
    completions = engine.generate(prompts, sampling)
    return [output(engine.tokenizer, completion.token_ids).text for completion in completions]
