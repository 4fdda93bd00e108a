"""Separates an answer from the thought (chain of thought) that a model writes before it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from raft.rendering.controls import Controls

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Opening and closing marks of thoughts, by model family. If the prompt has the opening mark, the output has only the
# closing one.
MARKS = (
    ("<think>", "</think>"),
    ("<|channel>thought", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)


class Thoughtful(NamedTuple):
    """A text and the thought before it, if any."""

    thought: str | None
    text: str


def split_thought(text: str) -> Thoughtful:
    """Splits after the last closing mark. If a thought is opened and not closed, all is thought and the text is empty.

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


def output(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> Thoughtful:
    """The generated text and thought, without special tokens and outer white space. ids: generated tokens."""
    # Special tokens are decoded first: in some vocabularies the marks of thoughts are among them.
    found = split_thought(tokenizer.decode(ids))
    if found.thought is None:
        return Thoughtful(None, tokenizer.decode(ids, skip_special_tokens=True).strip())
    without = Controls.of(tokenizer).remove
    return Thoughtful(without(found.thought).strip(), without(found.text).strip())


def ends_inside(prompt: str) -> str | None:
    """The opening mark if a rendered prompt ends right after it, inside a thought; else None."""
    for opening, closing in MARKS:
        start = prompt.rfind(opening)
        if start >= 0 and closing not in prompt[start:] and not prompt[start + len(opening) :].strip():
            return opening
    return None
