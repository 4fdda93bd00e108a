"""Arguments of the chat template that come from a row: thoughts, tools, chat_template_kwargs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raft.errors import InputError
from raft.prompts import Message
from raft.rendering.controls import Controls
from raft.rendering.thoughts import split_thought

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raft.rows import Row

THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys under which different templates expect the thought of a message."""


def answer_message(row: "Row", content: str) -> Message:
    """The assistant's message with this content, and the other fields of the row's "answer_turn": tool calls, and a
    thought, under all of THOUGHT_KEYS."""
    message: Any = {"role": "assistant", "content": content, **row.get("answer_turn", {})}
    thought = next((message[key] for key in THOUGHT_KEYS if key in message), None)
    return message if thought is None else message | dict.fromkeys(THOUGHT_KEYS, thought)


def thought_of(message: Mapping[str, object]) -> str | None:
    """The thought of an assistant's message, from a field of its own or from the start of its content."""
    for key in THOUGHT_KEYS:
        thought = message.get(key)
        if isinstance(thought, str) and thought.strip():
            return thought
    content = message.get("content")
    return (split_thought(content).thought or None) if isinstance(content, str) else None


def chat_options(row: Mapping[str, Any], answer: Mapping[str, object] | None = None) -> dict[str, object]:
    """Arguments of `chat_text` for a row: its "tools" and "chat_template_kwargs".

    If the answer has a thought, thinking is enabled, so that rollouts have thoughts too. "chat_template_kwargs" of the
    row take precedence.
    """
    options: dict[str, object] = {"enable_thinking": answer is not None and thought_of(answer) is not None}
    if row.get("tools"):
        options["tools"] = row["tools"]
    return options | dict(row.get("chat_template_kwargs") or {})


def control_in(row: "Row", answer: str, tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The first control token in the texts of a row; InputError if its question is already rendered by a template."""
    controls = Controls.of(tokenizer)
    texts = [m["content"] for m in row["prompt"] if isinstance(m.get("content"), str)]
    for text in texts:
        first = controls.first_in(text)
        if first is not None and text.lstrip().startswith(first) and first in (tokenizer.chat_template or ""):
            raise InputError(
                f"the prompt begins with {first}, which the chat template writes itself: expected the "
                "question or messages, not a rendered prompt"
            )
    return next((found for text in [*texts, answer] if (found := controls.first_in(text))), None)
