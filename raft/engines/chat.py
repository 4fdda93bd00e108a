"""Chats in, texts out, by an engine."""

from collections.abc import Mapping, Sequence
from typing import Any

from raft.engines.base import Engine, Sampling
from raft.rendering.chat import chat_ids


def generate_text(
    engine: Engine, list_of_messages: Sequence[Sequence[Mapping[str, Any]]], sampling: Sampling
) -> list[str]:
    """Chats in, answers out: special tokens skipped, outer whitespace stripped."""
    prompts = [chat_ids(engine.tokenizer, messages) for messages in list_of_messages]
    completions = engine.generate(prompts, sampling)
    return [engine.tokenizer.decode(c.token_ids, skip_special_tokens=True).strip() for c in completions]
