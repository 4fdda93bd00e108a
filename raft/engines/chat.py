"""Chats in, texts out, by an engine."""

from collections.abc import Mapping, Sequence
from typing import Any

from raft.engines.base import Engine, Sampling
from raft.rendering import chat_ids, output


def generate_text(
    engine: Engine, list_of_messages: Sequence[Sequence[Mapping[str, Any]]], sampling: Sampling
) -> list[str]:
    """Chats in, answers out: without thoughts before them, special tokens and outer white space."""
    prompts = [chat_ids(engine.tokenizer, messages) for messages in list_of_messages]
    completions = engine.generate(prompts, sampling)
    return [output(engine.tokenizer, completion.token_ids).text for completion in completions]
