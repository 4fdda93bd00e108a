"""Reads rows from files or from memory, checks them, and converts them to `Row`.

A row may have question and answer, prompt and completion (texts or chat messages), one list of chat messages, or a form
of `raft.row_forms`. Errors are one line with file, line, field, what was expected and what was found.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from raft.errors import InputError
from raft.prompts import Message
from raft.row_files import rows_of
from raft.row_forms import SHAPES, usual_form
from raft.row_values import from_json, shorten, show

ROLES = ("system", "developer", "user", "assistant", "tool")
# Fields that are not supported, and refused: without them the answer would be trained on an incomplete question.
UNREAD = ("images", "image", "videos", "video", "audio", "audios", "documents", "system")
# Arguments of the chat template that a row may not set.
OURS = (
    "messages",
    "conversation",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "return_dict",
)


class Row(TypedDict):
    """One question with its answer. Other fields of the input, such as "check" or "skill", are kept unchanged."""

    id: str
    question: str
    answer: str
    prompt: list[Message]
    fused_answer: NotRequired[str]
    answer_turn: NotRequired[dict[str, object]]
    """Fields of the answer's message besides its content: a thought ("reasoning_content"), "tool_calls"."""
    tools: NotRequired[list[object]]
    """Schemas of tools, for the chat template."""
    chat_template_kwargs: NotRequired[dict[str, object]]
    """Other arguments of the chat template, such as "enable_thinking"."""


def read_rows(path: str | Path, *, need_answer: bool = True) -> list[Row]:
    """All rows of a file, or of a folder that `datasets` saved: `raft.row_files`. `InputError` if one is wrong."""
    return list(iter_rows(path, need_answer=need_answer))


def iter_rows(path: str | Path, *, need_answer: bool = True) -> Iterator[Row]:
    """The same one by one; a wrong row is known when it is reached."""
    return _checked(rows_of(Path(path)), str(path), need_answer)


def normalize_rows(
    rows: Iterable[Mapping[str, object]], source: str = "train_dataset", need_answer: bool = True
) -> list[Row]:
    """The same for rows in memory: a list of dicts or a `datasets.Dataset`. source: names the rows in errors."""
    return list(_checked(((f"row {i}", row) for i, row in enumerate(rows)), source, need_answer))


def _checked(rows: Iterable[tuple[str, object]], source: str, need_answer: bool) -> Iterator[Row]:
    places: dict[str, str] = {}
    for number, (place, raw) in enumerate(rows):
        row = _row(raw, f"{source}, {place}", number, need_answer)
        if row["id"] in places:
            raise InputError(
                f'{source}, {place}: field "id": {show(row["id"])} is the id of {places[row["id"]]} too, '
                "expected an id of its own for every row"
            )
        places[row["id"]] = place
        yield row
    if not places:
        raise InputError(f"{source}: holds no rows, expected at least one")


def _row(raw: object, where: str, number: int, need_answer: bool) -> Row:
    if not isinstance(raw, Mapping):
        raise InputError(f"{where}: expected an object with {SHAPES}, found {show(raw)}")
    fields: dict[str, object] = usual_form(without_nulls(raw), where)
    _refuse_unread(fields, where)
    row_id = _id(fields.get("id", number), where)
    turn = fields.pop("answer_turn", {})
    if not isinstance(turn, dict):
        raise InputError(f'{where}: field "answer_turn": expected an object, found {show(turn)}')
    if "messages" in fields:
        prompt, answer, turn = _split(_messages(fields["messages"], where, "messages"), where, need_answer)
    elif "prompt" in fields:
        prompt = _prompt(fields["prompt"], where)
        answer, turn = _completion(fields, where, need_answer, turn)
    elif "question" in fields:
        prompt = [Message(role="user", content=_text(fields["question"], where, "question"))]
        answer, turn = _completion(fields, where, need_answer, turn)
    else:
        found = ", ".join(map(str, fields)) or "no fields"
        missing = "question" if "answer" in fields else "prompt" if "completion" in fields else None
        lead = f'field "{missing}" is missing: ' if missing else ""
        raise InputError(f"{where}: {lead}expected {SHAPES}, found {shorten(found)}")
    asked = [message["content"] for message in prompt if message["role"] == "user"]
    if not asked:
        roles = ", ".join(message["role"] for message in prompt) or "none"
        field = "messages" if "messages" in fields else "prompt"
        raise InputError(
            f'{where}: field "{field}": expected a user message before the answer, found the roles {roles}'
        )
    question = _text(fields["question"], where, "question") if "question" in fields else asked[-1]
    if "fused_answer" in fields:
        _said(fields["fused_answer"], turn, where, "fused_answer")
    rest = {key: value for key, value in fields.items() if key not in ("messages", "completion")}
    rest |= {"answer_turn": turn} if turn else {}
    rest |= _template_arguments(fields, where)
    row: Any = {**rest, "id": row_id, "question": question, "answer": answer, "prompt": prompt}
    return row


def without_nulls(value: Any) -> Any:
    """Removes nulls at every depth: columnar formats write them for fields that a row does not have."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [without_nulls(item) for item in value]
    return value


def _refuse_unread(fields: Mapping[str, object], where: str) -> None:
    for name in UNREAD:
        if fields.get(name):
            instead = (
                "a message of role system in messages or prompt"
                if name == "system"
                else "none, for only texts are read and the answer would be trained without it"
            )
            raise InputError(f'{where}: field "{name}": expected {instead}; found {show(fields[name])}')


def _template_arguments(fields: Mapping[str, object], where: str) -> dict[str, object]:
    """The row's "tools" and "chat_template_kwargs", if any. Each may be a JSON text."""
    found: dict[str, Any] = {}
    for name, kind, expected in (("tools", list, "a list"), ("chat_template_kwargs", Mapping, "an object")):
        if name not in fields:
            continue
        value = from_json(fields[name], expected, where, name)
        if not isinstance(value, kind):
            raise InputError(f'{where}: field "{name}": expected {expected}, found {show(value)}')
        found[name] = value
    for name in found.get("chat_template_kwargs", ()):
        if name in OURS:
            raise InputError(f'{where}: field "chat_template_kwargs.{name}": not for a row to set')
    return found


def _id(value: object, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise InputError(f'{where}: field "id": expected a text or a whole number, found {show(value)}')
    return _text(str(value), where, "id")


def _completion(
    fields: Mapping[str, object], where: str, need_answer: bool, turn: dict[str, object]
) -> tuple[str, dict[str, object]]:
    """The reference answer, and the other fields of its message. It is in "completion" (a text, or a list with one
    assistant message) or in "answer". turn: "answer_turn" of a row that was checked before."""
    if "completion" in fields and not isinstance(fields["completion"], str):
        messages = _messages(fields["completion"], where, "completion")
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            roles = ", ".join(message["role"] for message in messages)
            raise InputError(f'{where}: field "completion": expected one assistant message, found the roles {roles}')
        return _apart(messages[0])
    field = "completion" if "completion" in fields else "answer"
    if field in fields:
        return _said(fields[field], turn, where, field), turn
    if not need_answer:
        return "", turn
    wanted = "completion" if "prompt" in fields and "question" not in fields else "answer"
    raise InputError(
        f'{where}: field "{wanted}" is missing, expected a text; found {shorten(", ".join(map(str, fields)))}'
    )


def _apart(message: Message) -> tuple[str, dict[str, object]]:
    """Content and other fields of an assistant's message."""
    return message["content"], {key: item for key, item in message.items() if key not in ("role", "content")}


def _prompt(value: object, where: str) -> list[Message]:
    if isinstance(value, str):
        return [Message(role="user", content=_text(value, where, "prompt"))]
    messages = _messages(value, where, "prompt")
    if messages[-1]["role"] == "assistant":
        raise InputError(
            f'{where}: field "prompt": expected messages up to the last question, found an assistant message at the end'
        )
    return messages


def _split(messages: list[Message], where: str, need_answer: bool) -> tuple[list[Message], str, dict[str, object]]:
    if messages[-1]["role"] == "assistant":
        return messages[:-1], *_apart(messages[-1])
    if not need_answer:
        return messages, "", {}
    raise InputError(
        f'{where}: field "messages": expected an assistant message at the end, found role {messages[-1]["role"]!r}'
    )


def _messages(value: object, where: str, field: str) -> list[Message]:
    if not isinstance(value, (list, tuple)):
        expected = "a list of messages" if field == "messages" else "a text or a list of messages"
        raise InputError(f'{where}: field "{field}": expected {expected}, found {show(value)}')
    if not value:
        raise InputError(f'{where}: field "{field}": expected at least one message, found an empty list')
    return [_message(message, where, f"{field}[{i}]") for i, message in enumerate(value)]


def _message(value: object, where: str, field: str) -> Message:
    if not isinstance(value, Mapping):
        raise InputError(f'{where}: field "{field}": expected an object with "role" and "content", found {show(value)}')
    message = dict(value)
    if message.get("role") not in ROLES:
        found = show(message["role"]) if "role" in message else "none"
        raise InputError(f'{where}: field "{field}.role": expected one of {", ".join(ROLES)}, found {found}')
    if isinstance(message.get("content"), list):
        message["content"] = _joined(message["content"], where, f"{field}.content")
    if calls := message.get("tool_calls"):
        if not isinstance(calls, list):
            raise InputError(f'{where}: field "{field}.tool_calls": expected a list, found {show(calls)}')
        message["tool_calls"] = [_called(call, where, f"{field}.tool_calls") for call in calls]
        message.setdefault("content", "")
    if "content" not in message:
        raise InputError(f'{where}: field "{field}.content" is missing, expected a text')
    _said(message["content"], message, where, f"{field}.content")
    return message  # type: ignore[return-value]  # other keys than role and content are for the chat template


def _joined(parts: list[Any], where: str, field: str) -> str:
    """Joins a message's content that is a list of text parts."""
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InputError(
                f'{where}: field "{field}": expected parts {{"type": "text", "text": ...}}, found {show(part)}'
            )
    return "".join(part["text"] for part in parts)


def _called(call: object, where: str, field: str) -> Mapping[str, object]:
    """A tool call with its arguments as an object, as templates expect. In OpenAI's format they are a JSON text."""
    if not isinstance(call, Mapping):
        raise InputError(f'{where}: field "{field}": expected an object, found {show(call)}')
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    arguments = from_json(function["arguments"] or "{}", "an object", where, f"{field}.function.arguments")
    return {**call, "function": {**function, "arguments": without_nulls(arguments)}}


def _said(value: object, message: Mapping[str, object], where: str, field: str) -> str:
    """Checks that `value` is a text, which may be empty if the message calls tools."""
    return "" if value == "" and message.get("tool_calls") else _text(value, where, field)


def _text(value: object, where: str, field: str) -> str:
    if not isinstance(value, str):
        raise InputError(f'{where}: field "{field}": expected a text, found {show(value)}')
    if not value.strip():
        raise InputError(f'{where}: field "{field}" is empty, expected a text, found {value!r}')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # Half of a surrogate pair, from a JSON escape: no tokenizer accepts it.
        raise InputError(
            f'{where}: field "{field}": expected valid Unicode, found {value[error.start]!a} at character {error.start}'
        ) from error
    return value
