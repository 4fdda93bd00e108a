"""The turn of the assistant that a chat ends with: where it begins, which tokens are trained, and where it ends."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from raft.errors import InputError
from raft.rendering.chat import chat_text
from raft.rendering.controls import Controls
from raft.rendering.thoughts import split_thought

# In the place of a question and of an answer: characters for private use.
QUESTION, ANSWER = "\ue0f2q\ue0f3", "\ue0f2a\ue0f3"


@dataclass(frozen=True)
class Turn:
    """Token ids of a chat and of its answer."""

    prompt: list[int]
    """What the model is asked with: the chat up to where its turn begins."""
    context: list[int]
    """What stands before the answer in training: the part of `prompt` that the template writes for the whole chat too;
    nearly always all of it."""
    target: list[int]
    """The rest of the turn, as the template writes it, up to the token that ends it."""


def assistant_turn(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    answer: Mapping[str, Any],
    ends: Collection[int],
    **options: Any,
) -> Turn:
    """The turn `answer` (a message of the assistant) after `messages`. `ends`: ids of tokens that end a turn.

    Where the template writes the whole chat otherwise than its own generation prompt (R1's opens a thought there), what
    is trained begins where the two part, as in TRL. Raises InputError where question and answer cannot be told apart,
    or one of them is not in what the template writes. options: of `chat_text`.
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
    messages: Sequence[Mapping[str, Any]],
    answer: Mapping[str, Any],
    prompt: str,
    whole: str,
    tools: Collection[Any],
) -> None:
    """InputError for what the template leaves out: texts of users and system, tools and their calls."""
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


def _function(tool: Any) -> str | None:
    """The name of a tool or of what a call calls."""
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    return inner.get("name") if isinstance(inner, Mapping) else None


def _behind(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    answer: Mapping[str, Any],
    prompt: str,
    whole: str,
    options: Mapping[str, Any],
) -> str:
    """What the template writes behind the answer's text; behind the prompt where the answer has only calls of tools.

    Marks in the place of both texts show where they go: a short answer could be found anywhere.
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


def end_texts(tokenizer: Any, ends: Collection[int]) -> list[str]:
    """What the tokens that end a turn look like in a rendered text, the longest first."""
    return sorted({tokenizer.decode([end]) for end in ends} - {""}, key=len, reverse=True)


def end_of_turn(tokenizer: Any, text: str, ends: Collection[int]) -> int | None:
    """Where in `text` the first end token ends."""
    found = [(text.index(end), -len(end)) for end in end_texts(tokenizer, ends) if end in text]
    if not found:
        return None
    place, length = min(found)
    return place - length


def _named_end(tokenizer: Any, ends: Collection[int]) -> int:
    if tokenizer.eos_token_id is not None:
        return int(tokenizer.eos_token_id)
    if not ends:
        raise InputError(
            "nothing names the token that ends an answer: expected eos_token in the tokenizer's configuration or "
            "eos_token_id in the model's"
        )
    return min(ends)


def common(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Length of the common beginning."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def _short(controls: Controls, text: str, limit: int = 120) -> str:
    text = " ".join(controls.show(text).replace(QUESTION, "QUESTION").replace(ANSWER, "ANSWER").split())
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")
