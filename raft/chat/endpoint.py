"""A chat model behind an OpenAI-compatible server, such as `vllm serve`."""

import asyncio
import importlib.util
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from raft.chat.base import ChatRequest, Failure, Reply
from raft.chat.traffic import Place, Traffic
from raft.errors import ConfigError, EngineError
from raft.isolate import reason
from raft.rendering.thoughts import split_thought

if TYPE_CHECKING:
    from httpx import Response
    from openai import APIError, AsyncOpenAI
    from openai.types.chat import ChatCompletion

LOOPBACK = ("localhost", "127.0.0.1", "::1")
REPEATS = 5
"""How often a request is sent again that was refused for now, cut off, late, or answered with an error of the server.
The client waits half a second before the first time, twice as long before each further one (8 s at most), or as long
as the server's Retry-After says (two minutes at most)."""
UNREADABLE = 4
"""How often a request is sent again, at once, whose answer cannot be read or holds nothing."""
HOPELESS = 50
"""So many requests that fail in a row end the run: the server is not there, or is broken."""

Found = queue.Queue[tuple[int, Reply | Failure] | BaseException | None]  # None: there are no more


class _Exchange:
    """One request with all its repetitions, as the hooks of the HTTP client see it."""

    def __init__(self, place: Place, traffic: Traffic):
        self.traffic, self._place = traffic, place

    async def sends(self) -> None:
        if self._place.state == "rests":
            room = asyncio.Event()
            self.traffic.ask_again(self._place, _waker(room))
            await room.wait()

    def hears(self, status: int) -> None:
        self.traffic.hears(refused=status in (429, 503))
        if status in (408, 409, 429) or status >= 500:  # which the client sends again after a while
            self.traffic.rest(self._place)

    def ends(self, task: "asyncio.Task[Reply | Failure]") -> None:
        """Called also where the task was given up before it began."""
        self.traffic.end(self._place)


def _waker(event: asyncio.Event) -> Callable[[], object]:
    """Sets the event of the running loop, from any thread."""
    return partial(asyncio.get_running_loop().call_soon_threadsafe, event.set)


_exchange: ContextVar[_Exchange] = ContextVar("exchange")
"""That of the task: each has a context of its own."""


def is_endpoint(name: str) -> bool:
    """Whether a model's name is meant for a server, rather than for a folder or the Hub."""
    return "://" in name or "@http" in name


def split_endpoint(name: str) -> tuple[str, str]:
    """Model and address of "MODEL@BASE_URL". ConfigError for anything else."""
    found = re.fullmatch(r"(.+)@(https?://[^/?#].*)", name)
    if found is None:
        raise ConfigError(f"expected MODEL@BASE_URL, such as gpt-oss-120b@http://127.0.0.1:8000/v1, found {name!r}")
    model, url = found.groups()
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"{url}: {error}, expected an address such as http://127.0.0.1:8000/v1") from error
    if parts.username or parts.password or parts.query:  # the address is written into the run folder
        raise ConfigError("expected an address without user, password and query: keys come from the environment")
    return model, url.rstrip("/")


class EndpointChat:
    """Sends as many requests at once as the server takes (`raft.chat.traffic`), from a thread of its own."""

    def __init__(
        self,
        name: str,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        traffic: Traffic | None = None,
        timeout: float = 600.0,
    ):
        """name: MODEL@BASE_URL. api_key_env: the environment variable with the key, which a server on this machine does
        not need. traffic: of the server, shared by all that ask it; None: one of its own, of 256 requests at once.
        timeout: seconds for one request, each time it is sent.

        ConfigError where the name is none or the key is missing.
        """
        # The address is no part of the name, and so of no key: the same model elsewhere need not repeat anything.
        self.name, self._base_url = split_endpoint(name)
        self._place = f"{self.name}@{self._base_url}"
        self._key = os.environ.get(api_key_env)
        if not self._key and urlsplit(self._base_url).hostname not in LOOPBACK:
            raise ConfigError(f"{self._place}: expected its key in the environment variable {api_key_env}, found none")
        if importlib.util.find_spec("openai") is None:
            raise ConfigError(f'{self._place}: needs the package openai: pip install "raft-distill[endpoint]"')
        self._traffic = traffic or Traffic(256)
        self._timeout = timeout
        self._failures = 0  # in a row
        self._has_answered = False
        self._knows_schemas = True  # until the server refuses one
        self._limit_name = "max_tokens"  # what every server knows but OpenAI's for its newer models

    @property
    def in_flight(self) -> int:
        """Requests that the server is working on, those of others that share the traffic too."""
        return self._traffic.in_flight

    def replies(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Reply | Failure]]:
        """See `ChatModel.replies`. EngineError for what no request would survive: a wrong key, an unknown model, no
        server."""
        if not requests:
            return
        found: Found = queue.Queue()
        stop = threading.Event()
        worker = threading.Thread(target=self._work, args=(requests, found, stop), name=self._place, daemon=True)
        worker.start()
        try:
            while (item := found.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:  # also where the caller wants no more: what is in flight is given up
            stop.set()
            worker.join()

    def _work(self, requests: Sequence[ChatRequest], found: Found, stop: threading.Event) -> None:
        try:
            asyncio.run(self._ask_all(requests, found, stop))
            found.put(None)
        except BaseException as error:  # noqa: BLE001  # raised where the replies are read
            found.put(error)

    async def _ask_all(self, requests: Sequence[ChatRequest], found: Found, stop: threading.Event) -> None:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

        left = iter(range(len(requests)))
        at = next(left, None)
        flying: dict[asyncio.Task[Reply | Failure], int] = {}
        done: list[asyncio.Task[Reply | Failure]] = []
        traffic, room = self._traffic, asyncio.Event()
        place: Place | None = None
        async with AsyncOpenAI(
            api_key=self._key or "none",  # the client insists on one
            base_url=self._base_url,
            timeout=Timeout(self._timeout, connect=10),
            max_retries=REPEATS,
            http_client=DefaultAsyncHttpxClient(event_hooks={"request": [_sends], "response": [_hears]}),
        ) as client:
            try:
                while (flying or at is not None) and not stop.is_set():
                    # What was answered and not yet taken would be lost by a kill: it is held small.
                    if at is not None and place is None and found.qsize() < traffic.most:
                        request = requests[at]
                        place = traffic.ask(_waker(room))
                    if at is not None and place is not None and place.state == "flies":
                        exchange = _Exchange(place, traffic)
                        task = asyncio.create_task(self._ask(client, exchange, request))
                        task.add_done_callback(exchange.ends)
                        task.add_done_callback(done.append)
                        task.add_done_callback(lambda _: room.set())
                        flying[task], place, at = at, None, next(left, None)
                        continue
                    room.clear()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(room.wait(), min(0.2, traffic.pause or 0.2))
                    traffic.look()
                    ended = [done.pop() for _ in range(len(done))]
                    # Those with an error last: it ends the loop, and the others are answered and paid for.
                    for task in sorted(ended, key=lambda task: task.exception() is not None):
                        number, reply = flying.pop(task), task.result()
                        found.put((number, reply))
                        self._count(reply)
            finally:
                if place is not None:
                    traffic.end(place)
                for task in flying:
                    task.cancel()
                await asyncio.gather(*flying, return_exceptions=True)

    def _count(self, reply: Reply | Failure) -> None:
        """EngineError after HOPELESS failures without an answer between them."""
        self._has_answered |= isinstance(reply, Reply)
        if isinstance(reply, Reply) or reply.lasting:
            self._failures = 0
            return
        self._failures += 1
        if self._failures >= HOPELESS:
            raise EngineError(
                f"{self._place}: {self._failures} requests in a row failed, the last: {reply.reason}; what was "
                "answered before is kept, and the same command goes on from there"
            )

    async def _ask(self, client: "AsyncOpenAI", exchange: _Exchange, request: ChatRequest) -> Reply | Failure:
        import openai

        _exchange.set(exchange)
        reply: Reply | Failure
        for left in reversed(range(UNREADABLE + 1)):
            arguments = self._arguments(request)
            try:
                reply = result(await client.chat.completions.create(**arguments))
                if isinstance(reply, Failure) and not reply.lasting and left:
                    continue
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                raise EngineError(f"{self._place}: {self._said(error)}") from None
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if left and self._adapts(arguments, str(error)):
                    continue
                # Before the first answer it is more likely that the server refuses whatever we ask.
                reply = Failure(self._said(error), lasting=self._has_answered)
            except openai.APITimeoutError:
                exchange.traffic.hears(refused=True)
                reply = Failure(f"no answer in {self._timeout:g} s", lasting=False)
            except (openai.APIStatusError, openai.APIConnectionError) as error:
                reply = Failure(self._said(error), lasting=False)
            except Exception as error:  # noqa: BLE001  # a body that is no JSON, or JSON of another form
                if left:
                    continue
                reply = Failure(f"the answer cannot be read: {reason(error)}", lasting=False)
            break
        return reply

    def _said(self, error: "APIError") -> str:
        """The server's words, in one line, without the key."""
        status = getattr(error, "status_code", None)
        said = reason(error) if status is None else f"HTTP {status}: {' '.join(str(error).split())[:280]}"
        return said.replace(self._key, "***") if self._key else said

    def _arguments(self, request: ChatRequest) -> dict[str, Any]:
        """Of one call of the client."""
        template = {name: value for name, value in request.options.items() if name != "tools"}
        arguments: dict[str, Any] = {
            "model": self.name,
            "messages": list(request.messages),
            "seed": request.seed,
            "temperature": request.temperature,
            self._limit_name: request.max_tokens,
        }
        if request.options.get("tools"):
            arguments["tools"] = request.options["tools"]
        if template:  # vLLM and SGLang know it
            arguments["extra_body"] = {"chat_template_kwargs": template}
        if request.schema is not None and self._knows_schemas:
            schema = {"name": "reply", "schema": request.schema, "strict": False}
            arguments["response_format"] = {"type": "json_schema", "json_schema": schema}
        return arguments

    def _adapts(self, arguments: dict[str, Any], refusal: str) -> bool:
        """Whether the server refuses an argument that it can do without, or knows by another name. Such requests are
        sent again, and later ones without it."""
        if "response_format" in arguments and ("response_format" in refusal or "schema" in refusal):
            self._knows_schemas = False
            return True
        if "max_tokens" in arguments and "max_completion_tokens" in refusal:
            self._limit_name = "max_completion_tokens"
            return True
        return False


def result(completion: "ChatCompletion") -> Reply | Failure:
    """What a server's answer holds."""
    tokens = completion.usage.completion_tokens if completion.usage else 0
    if not completion.choices:
        return Failure("the answer has no choice", lasting=False, tokens=tokens)
    choice = completion.choices[0]
    if choice.finish_reason == "length":
        return Failure(f"the output was cut after {tokens} tokens (max_tokens)", lasting=True, tokens=tokens)
    if choice.finish_reason == "content_filter" or choice.message.refusal:
        said = choice.message.refusal or "its content filter"
        return Failure(f"the server refuses: {' '.join(said.split())[:200]}", lasting=True, tokens=tokens)
    # Servers with a parser of thoughts give them apart, under one of two names; others leave them in the text.
    apart = getattr(choice.message, "reasoning_content", None) or getattr(choice.message, "reasoning", None)
    thought, text = split_thought(choice.message.content or "")
    if not text.strip():
        return Failure("the output is empty", lasting=True, tokens=tokens)
    return Reply(text.strip(), tokens, apart or thought)


async def _sends(request: object) -> None:
    """Hook of the HTTP client: it also sees what the client sends again."""
    await _exchange.get().sends()


async def _hears(response: "Response") -> None:
    """Hook of the HTTP client."""
    _exchange.get().hears(response.status_code)
