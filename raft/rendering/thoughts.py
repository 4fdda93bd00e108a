"""Thoughts that a model writes before its answer."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from raft.rendering.controls import Controls

# Opening and closing mark of the families that think in the open. A generation prompt may have opened the thought, so
# that an output has the closing mark alone.
MARKS = (
    ("<think>", "</think>"),
    ("<|channel>thought", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)


class Thoughtful(NamedTuple):
    """A text apart from the thought before it."""

    thought: str | None
    text: str


def split_thought(text: str) -> Thoughtful:
    """Splits behind the last closing mark; a thought that is opened and never closed leaves no text.

    >>> split_thought("<think>\\nhm\\n</think>\\n\\nBecause.")
    Thoughtful(thought='hm', text='Because.')
    """
    for opening, closing in MARKS:
        before, mark, after = text.rpartition(closing)
        if mark:
            return Thoughtful(before.strip().removeprefix(opening).strip(), after.strip())
        if text.lstrip().startswith(opening):
            return Thoughtful(text.strip().removeprefix(opening).strip(), "")
    return Thoughtful(None, text)


def output(tokenizer: Any, ids: Sequence[int]) -> Thoughtful:
    """What a model wrote, apart from the thought before it: without special tokens and outer white space."""
    # Marks of thoughts are special tokens in some vocabularies.
    found = split_thought(tokenizer.decode(ids))
    if found.thought is None:
        return Thoughtful(None, tokenizer.decode(ids, skip_special_tokens=True).strip())
    without = Controls.of(tokenizer).remove
    return Thoughtful(without(found.thought).strip(), without(found.text).strip())


def ends_inside(prompt: str) -> str | None:
    """The mark of the thought that a rendered prompt ends inside of."""
    for opening, closing in MARKS:
        start = prompt.rfind(opening)
        if start >= 0 and closing not in prompt[start:] and not prompt[start + len(opening) :].strip():
            return opening
    return None
