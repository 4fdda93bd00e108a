"""Renders rows to token ids once, before training: prompts by the chat template, answers with the end-of-turn token.

Lengths are checked here, before any work on the GPU: long answers are cut, long prompts are refused.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from raft.errors import InputError
from raft.prompts import TEACHER_PROMPTS, teacher_messages
from raft.rendering import assistant_turn, chat_ids, chat_options
from raft.rendering.controls import without_end
from raft.rendering.earlier import earlier_turns
from raft.rendering.row import answer_message, control_in, thought_of
from raft.rendering.thoughts import ends_inside
from raft.rendering.turn import end_texts
from raft.rows import Row
from raft.train.config import RAFTConfig

_LAST = 16  # the last tokens of a prompt, searched for an open thought mark


@dataclass(frozen=True)
class Example:
    """One row as token ids."""

    id: str
    question: str
    prompt: list[int]  # x, up to where the assistant's turn begins; rollouts follow it
    target: list[int]  # yhat, with the end-of-turn token unless it was cut
    teacher_prompt: list[int]  # what the teacher reads before the rollout; empty for methods without a teacher
    differs: int = 0  # number of last tokens of `prompt` that the template omits before an answer
    earlier: tuple[tuple[int, int], ...] = ()  # earlier assistant turns to train: [start, end) in `context`

    @property
    def context(self) -> list[int]:
        """The tokens before the target."""
        return self.prompt[: len(self.prompt) - self.differs]

    @property
    def answers(self) -> tuple[list[int], list[int], list[bool]]:
        """The tokens before the first trained one, the tokens from it on, and which of these are trained."""
        context = self.context
        start = self.earlier[0][0] if self.earlier else len(context)
        trained = [any(a <= i < b for a, b in self.earlier) for i in range(start, len(context))]
        return context[:start], [*context[start:], *self.target], trained + [True] * len(self.target)


@dataclass
class Notes:
    """Numbers of rows, by what rendering changed or found in them."""

    cut_targets: int = 0
    cut_references: int = 0
    ended: int = 0
    """Answers whose own end token was removed, because the template writes one."""
    controls: int = 0
    """Rows with control tokens in their texts, which are encoded as plain characters."""
    controls_first: str = ""
    """The first of these: row and token."""
    thoughts_dropped: int = 0
    """Rows with a thought that the template leaves out."""
    inside_thought: int = 0
    """Rows whose prompt ends inside a thought, though their answer has none."""


def render(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    args: RAFTConfig,
    ends: Collection[int],
    *,
    rollouts: bool = True,
    vocabulary: int | None = None,
) -> tuple[list[Example], Notes]:
    """Renders all rows. `InputError` names a row that cannot be trained, such as one whose prompt is too long.

    ends: all token ids that end a turn. rollouts: False if no rollouts will be generated for these rows. vocabulary:
    number of rows of the model's embedding; larger token ids are refused.
    """
    notes = Notes()
    examples = [_example(row, tokenizer, args, ends, rollouts and args.preset.distills, notes) for row in rows]
    if vocabulary is not None:
        for example in examples:
            _check_ids(example, tokenizer, vocabulary)
    return examples, notes


def digest(examples: Sequence[Example]) -> str:
    """Hash of all token ids. A resumed training compares it to detect that its rows render differently."""
    found = hashlib.blake2b(digest_size=8)
    for example in examples:
        found.update(repr((example.prompt, example.target, example.teacher_prompt)).encode())
    return found.hexdigest()


def _example(
    row: Row, tokenizer: PreTrainedTokenizerBase, args: RAFTConfig, ends: Collection[int], distills: bool, notes: Notes
) -> Example:
    answer = _answer(row, args)
    if row.get("answer_turn", {}).get("weight") == 0:
        raise InputError(f"row {row['id']}: its last message has weight 0: expected an answer to train on")
    bare = without_end(answer, end_texts(tokenizer, ends))
    notes.ended += bare != answer
    message = answer_message(row, bare)
    options = chat_options(row, message)
    try:
        control = control_in(row, bare, tokenizer)
        turn = assistant_turn(tokenizer, row["prompt"], message, ends, **options)
        every = args.assistant_turns == "all"
        earlier = tuple(earlier_turns(tokenizer, row["prompt"], ends, **options)) if every else ()
    except InputError as error:
        raise InputError(f"row {row['id']}: {error}") from error
    if control is not None:
        notes.controls += 1
        notes.controls_first = notes.controls_first or f"row {row['id']}: {control}"
    thought = thought_of(message)
    if thought is None:
        notes.inside_thought += ends_inside(tokenizer.decode(turn.prompt[-_LAST:])) is not None
    else:
        notes.thoughts_dropped += thought.strip() not in tokenizer.decode(turn.target)
    room = args.max_length - len(turn.prompt)
    if room < 1 or (distills and room < args.rollout_max_tokens):
        beside = f" beside rollout_max_tokens={args.rollout_max_tokens}" if distills else ""
        raise InputError(
            f"row {row['id']}: the prompt has {len(turn.prompt)} tokens, which does not fit into "
            f"max_length={args.max_length}{beside}; questions are never cut"
        )
    notes.cut_targets += len(turn.target) > room
    asked: list[int] = []
    if distills:
        # An answer without text calls tools; the teacher is then shown these calls.
        known = bare or json.dumps([call.get("function") for call in message.get("tool_calls", ())])
        asked, cut = _teacher_prompt(tokenizer, row, known, args, options)
        notes.cut_references += cut
    differs = len(turn.prompt) - len(turn.context)
    return Example(row["id"], row["question"], turn.prompt, turn.target[:room], asked, differs, earlier)


def _answer(row: Row, args: RAFTConfig) -> str:
    """The answer to train on and to condition the teacher on. For a row that the filter dropped it is the reference."""
    if args.answer_target == "raw":
        return row["answer"]
    if args.answer_target == "fused":
        return row.get("fused_answer") or row["answer"]
    if not row.get("kept", True):
        return row["answer"]
    rewritten = row.get("rewritten")
    if not isinstance(rewritten, str) or not rewritten.strip():
        raise InputError(
            f'row {row["id"]}: field "rewritten": expected a text, which target "rewritten" (method sdft) trains on, '
            f"found {rewritten!r}"
        )
    return rewritten


def _teacher_prompt(
    tokenizer: PreTrainedTokenizerBase, row: Row, reference: str, args: RAFTConfig, options: Mapping[str, Any]
) -> tuple[list[int], bool]:
    """The teacher's prompt, and whether its reference had to be cut to fit into teacher_max_length with a rollout."""
    room = args.teacher_length - args.rollout_max_tokens
    template = TEACHER_PROMPTS[args.teacher_prompt]
    shown = teacher_messages(row["prompt"], reference, template) if args.sees_answer else row["prompt"]
    asked = chat_ids(tokenizer, shown, **options)
    cut = args.sees_answer and len(asked) > room
    tokens: list[int] = tokenizer(reference, add_special_tokens=False)["input_ids"] if cut else []
    short = reference
    while tokens and len(asked) > room:
        tokens = tokens[: max(len(tokens) - (len(asked) - room), 0)]
        # A cut inside a multi-token character decodes to a replacement character at the end.
        short = tokenizer.decode(tokens).rstrip("\ufffd")
        asked = chat_ids(tokenizer, teacher_messages(row["prompt"], short, template), **options)
    if len(asked) > room or not short.strip():
        raise InputError(
            f"row {row['id']}: the question leaves the teacher no room for an answer: "
            f"teacher_max_length={args.teacher_length} less rollout_max_tokens={args.rollout_max_tokens} is {room} "
            "tokens; questions are never cut"
        )
    return asked, cut


def _check_ids(example: Example, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """Refuses ids beyond the embedding, which would stop training later, on a GPU with an error that names no row."""
    for name in ("prompt", "target", "teacher_prompt"):
        ids = getattr(example, name)
        most = max(ids, default=0)
        if most >= vocabulary:
            raise InputError(
                f"row {example.id}: its {name.replace('_', ' ')} has the token {tokenizer.decode([most])!r} with id "
                f"{most}, but the model has embeddings of {vocabulary} tokens (the tokenizer has {len(tokenizer)}): "
                "expected the tokenizer of this model"
            )
