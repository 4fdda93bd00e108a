"""From chat messages to token ids and from completions to text."""

from collections.abc import Mapping, Sequence
from typing import Any

from raft.engines.base import Engine, Sampling
from raft.errors import ModelError


def chat_ids(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = True,
    *,
    enable_thinking: bool = False,
) -> list[int]:
    """Token ids of the chat template.

    Models that can think aloud are asked not to: the data has answers, and thoughts would fill the budget of a rollout.
    Templates that do not know `enable_thinking` ignore it.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            f"tokenizer {getattr(tokenizer, 'name_or_path', '')!r} has no chat template; use a chat model's"
        )
    encoded = tokenizer.apply_chat_template(
        list(messages),
        add_generation_prompt=add_generation_prompt,
        tokenize=True,
        return_dict=True,
        enable_thinking=enable_thinking,
    )
    return list(encoded["input_ids"])


def generate_text(
    engine: Engine, list_of_messages: Sequence[Sequence[Mapping[str, Any]]], sampling: Sampling
) -> list[str]:
    """Chats in, answers out: special tokens skipped, outer whitespace stripped."""
    prompts = [chat_ids(engine.tokenizer, messages) for messages in list_of_messages]
    completions = engine.generate(prompts, sampling)
    return [engine.tokenizer.decode(c.token_ids, skip_special_tokens=True).strip() for c in completions]
