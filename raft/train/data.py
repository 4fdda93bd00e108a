"""Rows become token ids once, before training: prompts by the chat template, answers with the token that ends a turn.

Everything that does not fit is decided here, before any GPU second is spent: long answers are cut, long prompts refused.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from raft.engines.chat import chat_ids
from raft.errors import InputError
from raft.prompts import TEACHER_PROMPTS, Message, teacher_messages
from raft.rows import Row
from raft.train.config import RAFTConfig


@dataclass(frozen=True)
class Example:
    """One row, rendered."""

    id: str
    question: str
    prompt: list[int]  # x, up to where the assistant's turn begins
    target: list[int]  # yhat, with the end-of-turn token unless it was cut
    teacher_prompt: list[int]  # what the teacher reads before the rollout; empty for methods without a teacher


@dataclass(frozen=True)
class Cuts:
    """How many texts had to be shortened."""

    targets: int
    references: int


def render(
    rows: Sequence[Row], tokenizer: Any, args: RAFTConfig, ends: Collection[int], *, rollouts: bool = True
) -> tuple[list[Example], Cuts]:
    """Renders all rows; `InputError` names the row whose prompt leaves no room.

    `ends`: every token id that ends a turn. `rollouts` False: rows that are only ever trained or evaluated on their answers.
    """
    distills = rollouts and args.preset.distills
    examples, cut_targets, cut_references = [], 0, 0
    for row in rows:
        answer = _answer(row, args)
        prompt = chat_ids(tokenizer, row["prompt"])
        room = args.max_length - len(prompt)
        if room < 1 or (distills and room < args.rollout_max_tokens):
            beside = f" beside rollout_max_tokens={args.rollout_max_tokens}" if distills else ""
            raise InputError(
                f"row {row['id']}: the prompt has {len(prompt)} tokens, which does not fit into max_length={args.max_length}{beside}; "
                "questions are never cut"
            )
        target = target_ids(tokenizer, row["prompt"], prompt, answer, ends)
        cut_targets += len(target) > room
        asked: list[int] = []
        if distills:
            asked, cut = _teacher_prompt(tokenizer, row, answer, args)
            cut_references += cut
        examples.append(Example(row["id"], row["question"], prompt, target[:room], asked))
    return examples, Cuts(cut_targets, cut_references)


def target_ids(
    tokenizer: Any, messages: list[Message], prompt: list[int], answer: str, ends: Collection[int]
) -> list[int]:
    """Token ids of the assistant's turn with its end token, as the chat template writes it.

    Where the template does not continue its own generation prompt, the answer's tokens and the template's end token are used.
    """
    whole = chat_ids(tokenizer, [*messages, Message(role="assistant", content=answer)], add_generation_prompt=False)
    last = next((i for i in range(len(whole) - 1, -1, -1) if whole[i] in ends), None)
    if whole[: len(prompt)] == prompt and len(whole) > len(prompt):
        if last is not None and last >= len(prompt):
            return whole[len(prompt) : last + 1]
        return [*whole[len(prompt) :], tokenizer.eos_token_id]
    end = tokenizer.eos_token_id if last is None else whole[last]
    return [*tokenizer(answer, add_special_tokens=False)["input_ids"], end]


def _answer(row: Row, args: RAFTConfig) -> str:
    """The answer to train on and to condition the teacher on. A row that the filter did not keep has its reference only."""
    if args.answer_target == "raw":
        return row["answer"]
    if args.answer_target == "fused":
        return row.get("fused_answer") or row["answer"]
    if not row.get("kept", True):
        return row["answer"]
    rewritten = row.get("rewritten")
    if not isinstance(rewritten, str) or not rewritten.strip():
        raise InputError(
            f'row {row["id"]}: field "rewritten": expected a text, which target "rewritten" (method sdft) trains on, found {rewritten!r}'
        )
    return rewritten


def _teacher_prompt(tokenizer: Any, row: Row, reference: str, args: RAFTConfig) -> tuple[list[int], bool]:
    """The teacher's prompt, and whether its reference had to be cut to fit into teacher_max_length with a rollout."""
    room = args.teacher_length - args.rollout_max_tokens
    template = TEACHER_PROMPTS[args.teacher_prompt]
    shown = teacher_messages(row["prompt"], reference, template) if args.sees_answer else row["prompt"]
    asked = chat_ids(tokenizer, shown)
    cut = args.sees_answer and len(asked) > room
    tokens: list[int] = tokenizer(reference, add_special_tokens=False)["input_ids"] if cut else []
    short = reference
    while tokens and len(asked) > room:
        tokens = tokens[: max(len(tokens) - (len(asked) - room), 0)]
        # A cut inside a character leaves a replacement character behind.
        short = tokenizer.decode(tokens).rstrip("\ufffd")
        asked = chat_ids(tokenizer, teacher_messages(row["prompt"], short, template))
    if len(asked) > room or not short.strip():
        raise InputError(
            f"row {row['id']}: the question leaves the teacher no room for an answer: teacher_max_length={args.teacher_length} "
            f"less rollout_max_tokens={args.rollout_max_tokens} is {room} tokens; questions are never cut"
        )
    return asked, cut
