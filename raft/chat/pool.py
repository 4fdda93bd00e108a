"""The chat models of a run: one for each name, however many roles have that name, made when it is first needed."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from raft.chat.base import ChatModel
from raft.chat.endpoint import EndpointChat, is_endpoint, split_endpoint
from raft.chat.local import LocalChat
from raft.chat.traffic import Traffic
from raft.engines import make_engine
from raft.errors import ConfigError, RaftError
from raft.models import check_model, load_tokenizer
from raft.models.fingerprint import fingerprint
from raft.settings import RefineSettings

if TYPE_CHECKING:
    from raft.engines import Engine

LOCAL = "local"
"""The name of the model that the run is for."""


class ChatPool:
    """Names are LOCAL, a folder or name of another model, which then runs in this process too, or MODEL@BASE_URL.

    Engines of this process share the machine: where another one is made, those there are give back what their KV cache
    holds, as far as they can.
    """

    def __init__(self, settings: RefineSettings, model: str, engine: "Callable[[], Engine]"):
        """model: folder or name of the model that the run is for. engine: makes its engine."""
        self._settings = settings
        self._model = model
        self._make_own = engine
        self._engines: dict[str, Engine] = {}
        self._chats: dict[str, ChatModel] = {}
        self._traffic: dict[str, Traffic] = {}  # address of a server -> what all of its models are asked

    def __getitem__(self, name: str) -> ChatModel:
        """The chat model of that name. ConfigError or ModelError where there is none."""
        if name not in self._chats:
            self._chats[name] = self._make(name)
        return self._chats[name]

    def _make(self, name: str) -> ChatModel:
        settings = self._settings
        if is_endpoint(name):
            return EndpointChat(
                name,
                api_key_env=settings.api_key_env,
                traffic=self._traffic_of(split_endpoint(name)[1]),
                timeout=settings.timeout,
            )
        path = self._model if name == LOCAL else check_model(name)
        return LocalChat(
            fingerprint(path),
            lambda: self._engine(name),
            batch_size=settings.batch_size,
            max_model_len=settings.max_model_len,
        )

    def _traffic_of(self, address: str) -> Traffic:
        settings = self._settings
        return self._traffic.setdefault(address, Traffic(settings.concurrency, settings.requests_per_minute))

    def _engine(self, name: str) -> "Engine":
        if name not in self._engines:
            self.release()
            self._engines[name] = self._make_own() if name == LOCAL else self._make_other(name)
        return self._engines[name]

    def _make_other(self, path: str) -> "Engine":
        settings = self._settings
        return make_engine(settings.engine, path, load_tokenizer(path), max_model_len=settings.max_model_len)

    def release(self) -> None:
        """Gives the KV caches of all engines back; the next call of an engine takes its own again."""
        for engine in self._engines.values():
            engine.release()

    def make_room(self) -> None:
        """`release`, where there are several engines."""
        if len(self._engines) > 1:
            self.release()

    def close(self) -> None:
        for engine in reversed(self._engines.values()):
            engine.close()
        self._engines.clear()


def check_names(settings: RefineSettings) -> None:
    """ConfigError or ModelError where a role names no chat model, or a server whose key is missing. Asks no server."""
    roles = [("rewriter", settings.rewriter), ("fuser", settings.fuser)]
    for role, name in [*roles, *(("judges", name) for name in settings.judges if name != "programs")]:
        try:
            if is_endpoint(name):
                EndpointChat(name, api_key_env=settings.api_key_env)
            elif name != LOCAL:
                check_model(name)
        except RaftError as error:
            raise type(error)(f"refine.{role}: {error}") from error
    if len({judge_name(name) for name in settings.judges}) < len(settings.judges):
        raise ConfigError(f"refine.judges: expected each judge once, found {', '.join(settings.judges)}")


def judge_name(name: str) -> str:
    """What a judge is called in scores and keys: a server's model without the address, which may change."""
    return split_endpoint(name)[0] if is_endpoint(name) else name
