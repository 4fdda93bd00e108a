"""Chat messages to text and token ids, by the tokenizer's chat template."""

from collections.abc import Mapping, Sequence
from typing import Any

from raft.errors import InputError, ModelError
from raft.rendering.controls import Controls


def chat_text(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = True,
    *,
    enable_thinking: bool = False,
    **options: Any,
) -> str:
    """What the chat template writes; control tokens in the texts of messages and tools are held (`Controls.hold`).

    Models that can think aloud are asked not to: answers without thoughts are what most data has, and thoughts would
    fill the budget of a rollout. Templates that do not know `enable_thinking` ignore it. options: "tools", and whatever
    else the template takes. InputError where the template refuses the messages.
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
            enable_thinking=enable_thinking,
            **hold(options),
        )
    except Exception as error:  # a template may raise anything
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise InputError(
            f"the chat template refuses the messages (roles {roles}): {' '.join(str(error).split())}"
        ) from error
    return text


def _known_role(message: Mapping[str, Any], template: Any) -> Mapping[str, Any]:
    """OpenAI's role "developer" is "system" to templates that do not know it, and would leave it out."""
    if message.get("role") == "developer" and "developer" not in str(template):
        return {**message, "role": "system"}
    return message


def chat_ids(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = True,
    *,
    enable_thinking: bool = False,
    **options: Any,
) -> list[int]:
    """Token ids of `chat_text`."""
    text = chat_text(tokenizer, messages, add_generation_prompt, enable_thinking=enable_thinking, **options)
    return Controls.of(tokenizer).encode(tokenizer, text)
