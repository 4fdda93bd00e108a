"""Finds the tokens of assistant turns before the last one, so that they can be trained too."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from raft.errors import InputError
from raft.rendering.chat import chat_text
from raft.rendering.controls import Controls
from raft.rendering.turn import ANSWER, common, end_of_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def earlier_turns(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Mapping[str, object]],
    ends: Collection[int],
    /,
    **options: object,
) -> list[tuple[int, int]]:
    """[start, end) of every assistant turn in the tokens `chat_ids(messages)`, including the token that ends the turn.

    Messages without text, and those with "weight" 0 (OpenAI's mark for turns not to train), are skipped. InputError if
    the template leaves out a turn, or a token crosses its boundary. options: as in `chat_text`.
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
