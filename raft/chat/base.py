"""What every chat model takes and gives."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from raft.prompts import Message


@dataclass(frozen=True)
class ChatRequest:
    """One text that is wanted."""

    messages: Sequence[Message]
    seed: int
    """In [0, 2**63): the request draws from it alone, whatever other requests there are."""
    temperature: float = 1.0
    """0 is greedy."""
    max_tokens: int = 512
    """Of the reply, its thought included."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Of the chat template: tools and the like."""
    schema: Mapping[str, object] | None = None
    """The JSON schema of a reply that is to be JSON. Models that cannot be held to it answer freely."""


@dataclass(frozen=True)
class Reply:
    """A text that ended by itself and is not empty."""

    text: str
    """Without thought, special tokens and outer white space."""
    tokens: int
    """Generated for it, thought and end included."""
    thought: str | None = None
    """What the model thought before the text."""


@dataclass(frozen=True)
class Failure:
    """Why there is no text."""

    reason: str
    """One line."""
    lasting: bool
    """Whether the same request would fail again. Not so for what was raised: it may have been bad luck."""
    tokens: int = 0
    """Generated all the same."""


class ChatModel(Protocol):
    """Answers chats. A request that fails is no error; what makes every request fail is raised (EngineError and the
    like)."""

    @property
    def name(self) -> str:
        """Identifies the weights (a fingerprint, or what an endpoint calls its model): part of every key of the
        stores."""

    def replies(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Reply | Failure]]:
        """The place of each request in `requests` and what came of it, each once, in the order in which they finish.

        Nothing is asked before the first is wanted, and nothing at all where there are no requests.
        """
