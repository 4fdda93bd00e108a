"""The last assistant turn of a chat: where it begins, which of its tokens are trained, and where it ends."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from raft.errors import InputError
from raft.prompts import Message
from raft.rendering.chat import chat_text
from raft.rendering.controls import Controls
from raft.rendering.thoughts import split_thought

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Placeholders of private-use characters, rendered in place of the question and the answer to find their positions.
QUESTION, ANSWER = "\ue0f2q\ue0f3", "\ue0f2a\ue0f3"


@dataclass(frozen=True)
class Turn:
    """Token ids of a chat and of its answer."""

    prompt: list[int]
    """The chat with the generation prompt: what the model continues when it generates."""
    context: list[int]
    """What precedes `target` in training: the beginning that `prompt` and the whole chat have in common, nearly always
    all of `prompt`."""
    target: list[int]
    """The rest of the whole chat, up to the token that ends the turn."""


def assistant_turn(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    answer: Message,
    ends: Collection[int],
    /,
    **options: Any,
) -> Turn:
    """The turn of `answer` (an assistant message) after `messages`. ends: ids of tokens that end a turn.

    If the whole chat does not begin with the generation prompt (R1's template opens a thought there), `target` begins
    at the first difference, as in TRL. InputError if question and answer cannot be told apart, or the template leaves
    one of them out. options: as in `chat_text`.
    """
    controls = Controls.of(tokenizer)
    prompt = chat_text(tokenizer, messages, **options)
    whole = chat_text(tokenizer, [*messages, answer], False, **options)
    _check_written(controls, messages, answer, prompt, whole, options.get("tools") or ())
    behind = _behind(tokenizer, messages, answer, prompt, whole, options)
    end = end_of_turn(tokenizer, behind, ends)
    prompt_ids = controls.encode(tokenizer, prompt)
    ids = controls.encode(tokenizer, whole if end is None else whole[: len(whole) - len(behind) + end])
    if end is None:
        ids.append(_named_end(tokenizer, ends))
    shared = common(prompt_ids, ids)
    return Turn(prompt_ids, ids[:shared], ids[shared:])


def _check_written(
    controls: Controls,
    messages: Sequence[Message],
    answer: Message,
    prompt: str,
    whole: str,
    tools: Collection[object],
) -> None:
    """InputError if the template leaves out a user's or system text, a tool or a tool call."""
    short = partial(_short, controls)
    for said in messages:
        text = said.get("content")
        if said.get("role") in ("user", "system", "developer") and isinstance(text, str):
            text = controls.hold(text.strip())
            if text not in prompt:
                who = f"the {said['role']}'s message"
                raise InputError(f"the chat template leaves out {who} {short(text)}: it writes {short(prompt)}")
    for what, names, text in (
        ("the tool", [_function(tool) for tool in tools], prompt),
        ("the call of", [_function(call) for said in messages for call in said.get("tool_calls") or ()], prompt),
        ("the call of", [_function(call) for call in answer.get("tool_calls") or ()], whole[common(prompt, whole) :]),
    ):
        for name in names:
            if name and name not in text:
                raise InputError(f"the chat template leaves out {what} {name!r}: it writes {short(text)}")


def _function(tool: object) -> str | None:
    """The function name in a tool's schema or in a tool call."""
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    return inner.get("name") if isinstance(inner, Mapping) else None


def _behind(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    answer: Message,
    prompt: str,
    whole: str,
    options: Mapping[str, object],
) -> str:
    """The rendered text after the answer, or after the prompt if the answer has only tool calls.

    Placeholders for question and answer give their positions: a search for a short answer could match elsewhere.
    """
    controls = Controls.of(tokenizer)
    short = partial(_short, controls)
    last = max((i for i, m in enumerate(messages) if m.get("role") == "user"), default=None)
    asked = None if last is None else messages[last].get("content")
    marked = list(messages)
    if last is not None and isinstance(asked, str):
        marked[last] = {**messages[last], "content": QUESTION}
        asking = chat_text(tokenizer, marked, **options)
        answered = chat_text(tokenizer, [*marked, answer], False, **options)
        parted = common(asking, answered)
        if parted < asking.rfind(QUESTION) + len(QUESTION):
            raise InputError(
                "the chat template writes the question otherwise once it is answered, so that question and answer "
                f"cannot be told apart: {short(asking[parted:])} against {short(answered[parted:])}"
            )
    content = answer.get("content") or ""
    text = split_thought(content).text.strip()
    if not text:
        return whole[common(prompt, whole) :]
    place = content.rindex(text)
    whole_marked = chat_text(tokenizer, [*marked, {**answer, "content": content[:place] + ANSWER}], False, **options)
    _, mark, behind = whole_marked.rpartition(ANSWER)
    written = whole[: len(whole) - len(behind)] if whole.endswith(behind) else ""
    if not mark or not written.rstrip().endswith(controls.hold(text)):
        raise InputError(
            f"the chat template leaves out the answer {short(text)}: it writes {short(whole[common(prompt, whole) :])}"
        )
    return behind


def end_texts(tokenizer: "PreTrainedTokenizerBase", ends: Collection[int]) -> list[str]:
    """The texts of the tokens that end a turn, the longest first."""
    return sorted({tokenizer.decode([end]) for end in ends} - {""}, key=len, reverse=True)


def end_of_turn(tokenizer: "PreTrainedTokenizerBase", text: str, ends: Collection[int]) -> int | None:
    """The index in `text` after its first end token; None if it has none."""
    found = [(text.index(end), -len(end)) for end in end_texts(tokenizer, ends) if end in text]
    if not found:
        return None
    place, length = min(found)
    return place - length


def _named_end(tokenizer: "PreTrainedTokenizerBase", ends: Collection[int]) -> int:
    if tokenizer.eos_token_id is not None:
        return int(tokenizer.eos_token_id)
    if not ends:
        raise InputError(
            "nothing names the token that ends an answer: expected eos_token in the tokenizer's configuration or "
            "eos_token_id in the model's"
        )
    return min(ends)


def common(a: Sequence[object], b: Sequence[object]) -> int:
    """Length of the common prefix."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def _short(controls: Controls, text: str, limit: int = 120) -> str:
    text = " ".join(controls.show(text).replace(QUESTION, "QUESTION").replace(ANSWER, "ANSWER").split())
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")
