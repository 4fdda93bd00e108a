"""The turns of the assistant before the last one, where they stand in the tokens of a chat."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from raft.errors import InputError
from raft.rendering.chat import chat_text
from raft.rendering.controls import Controls
from raft.rendering.turn import ANSWER, common, end_of_turn


def earlier_turns(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], ends: Collection[int], **options: Any
) -> list[tuple[int, int]]:
    """First token and one past the last of every earlier turn of the assistant in `chat_ids(messages)`: from where its
    turn begins to the token that ends it, as the template writes a turn in the middle of a chat.

    Messages with "weight" 0 (OpenAI's way to leave a turn untrained) and those without a text are left out. InputError
    where the template does not write a turn, or tokens reach across its borders. options: of `chat_text`.
    """
    controls = Controls.of(tokenizer)
    whole = chat_text(tokenizer, messages, **options)
    ids = controls.encode(tokenizer, whole)
    spans = []
    for i, message in enumerate(messages):
        if message.get("role") != "assistant" or message.get("weight") == 0 or not message.get("content"):
            continue
        opening = chat_text(tokenizer, messages[:i], **options)
        marked = [*messages[:i], {**message, "content": ANSWER}, *messages[i + 1 :]]
        _, mark, behind = chat_text(tokenizer, marked, **options).partition(ANSWER)
        if not mark or not whole.endswith(behind):
            raise InputError(f"the chat template leaves out the assistant's message {i}")
        start = common(opening, whole)
        stop = len(whole) - len(behind) + (end_of_turn(tokenizer, behind, ends) or 0)
        before, through = controls.encode(tokenizer, whole[:start]), controls.encode(tokenizer, whole[:stop])
        if ids[: len(before)] != before or ids[: len(through)] != through:
            raise InputError(f"the tokens of the assistant's message {i} cannot be told from those around it")
        spans.append((len(before), len(through)))
    return spans
