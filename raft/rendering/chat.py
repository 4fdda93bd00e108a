"""Renders chat messages to text and token ids, with the tokenizer's chat template."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from raft.errors import InputError, ModelError
from raft.rendering.controls import Controls

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def chat_text(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Mapping[str, object]],
    add_generation_prompt: bool = True,
    /,
    **options: object,
) -> str:
    """The chat rendered by the template. Control tokens in texts of messages and tools are escaped (`Controls.hold`).

    options: "tools", "enable_thinking" and other arguments of the template. By default "enable_thinking" is False:
    answers in most data have no thoughts, and thoughts would use up the token limit of a rollout. Templates that do not
    know it ignore it. InputError if the template raises an error.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise ModelError(
            f"tokenizer {getattr(tokenizer, 'name_or_path', '')!r} has no chat template; use a chat model's"
        )
    hold = Controls.of(tokenizer).hold
    try:
        text: str = tokenizer.apply_chat_template(
            hold([_known_role(message, template) for message in messages]),
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **{"enable_thinking": False} | hold(options),
        )
    except Exception as error:  # a template may raise anything
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise InputError(
            f"the chat template refuses the messages (roles {roles}): {' '.join(str(error).split())}"
        ) from error
    return text


def _known_role(message: Mapping[str, object], template: object) -> Mapping[str, object]:
    """Renames OpenAI's role "developer" to "system" for templates that do not know it and would skip the message."""
    if message.get("role") == "developer" and "developer" not in str(template):
        return {**message, "role": "system"}
    return message


def chat_ids(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Mapping[str, object]],
    add_generation_prompt: bool = True,
    /,
    **options: object,
) -> list[int]:
    """Token ids of `chat_text`."""
    text = chat_text(tokenizer, messages, add_generation_prompt, **options)
    return Controls.of(tokenizer).encode(tokenizer, text)
