"""Converts rows in the forms of Alpaca and ShareGPT to rows with "question" and "answer" or "messages"."""

from collections.abc import Mapping

from raft.errors import InputError

FORM_FIELDS = ("instruction", "conversations")
"""Fields by which the forms are recognised."""
SHAPES = '"question" and "answer", "prompt" and "completion", or "messages"'
"""The usual forms, for error messages."""

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}


def usual_form(fields: dict[str, object], where: str) -> dict[str, object]:
    """Converts Alpaca's "instruction", "input" and "output" to question and answer, and ShareGPT's "conversations" to
    messages. Other rows are returned unchanged. where: names the row in an InputError."""
    if any(name in fields for name in ("messages", "prompt", "question")):
        return fields
    if "conversations" in fields:
        return _sharegpt(fields, where)
    if "instruction" in fields:
        return _alpaca(fields)
    return fields


def _alpaca(fields: dict[str, object]) -> dict[str, object]:
    rest = {key: value for key, value in fields.items() if key not in ("instruction", "input", "output")}
    asked, given = fields["instruction"], fields.get("input")
    question = f"{asked}\n\n{given}" if isinstance(given, str) and given.strip() and isinstance(asked, str) else asked
    return {**rest, "question": question, **({"answer": fields["output"]} if "output" in fields else {})}


def _sharegpt(fields: dict[str, object], where: str) -> dict[str, object]:
    turns = fields["conversations"]
    rest = {key: value for key, value in fields.items() if key not in ("conversations", "system")}
    if not isinstance(turns, list):
        raise InputError(f'{where}: field "conversations": expected a list of turns, found {type(turns).__name__}')
    messages = [{"role": "system", "content": fields["system"]}] if fields.get("system") else []
    for i, turn in enumerate(turns):
        said_by = turn.get("from", turn.get("role")) if isinstance(turn, Mapping) else None
        if not isinstance(said_by, str) or said_by not in _ROLES:
            expected = ", ".join(_ROLES)
            raise InputError(f'{where}: field "conversations[{i}].from": expected one of {expected}, found {said_by!r}')
        messages.append({"role": _ROLES[said_by], "content": turn.get("value", turn.get("content"))})
    return {**rest, "messages": messages}
