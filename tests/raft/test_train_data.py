"""Rows become token ids: what the template writes, what is cut and what is refused; micro-batches become packs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.engines.base import Completion
from raft.engines.chat import chat_ids
from raft.errors import InputError
from raft.prompts import TEACHER_PROMPTS, teacher_messages
from raft.rows import normalize_rows
from raft.train.batching import units
from raft.train.data import render, target_ids
from raft.train.losses import student_batch, teacher_pack
from raft.train.packing import pack
from raft.train.rollout import MicroBatch, Scored
from tests.golden.training import config
from tests.tiny import END, END_OF_TEXT, tokenizer

TOKENS = tokenizer()
ENDS = TOKENS.convert_tokens_to_ids([END, END_OF_TEXT])


def rendered(row, tmp_path, **overrides):
    examples, cuts = render(normalize_rows([row]), TOKENS, config(tmp_path, **overrides), ENDS)
    return examples[0], cuts


def text(ids):
    return TOKENS.decode(ids)


def test_a_row_is_rendered_by_the_template(tmp_path):
    example, cuts = rendered(
        {"id": 7, "question": "why?", "answer": "because", "fused_answer": "just because"}, tmp_path
    )
    assert (example.id, example.question) == ("7", "why?")
    assert text(example.prompt) == "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n"
    assert text(example.target) == "just because<|im_end|>"
    assert text(example.teacher_prompt) == (
        "<|im_start|>user\nwhy?\n\nWhat is known: just because<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (cuts.targets, cuts.references) == (0, 0)


def test_the_teachers_prompt_of_the_paper(tmp_path):
    row = {"question": "why?", "answer": "because"}
    example, _ = rendered(row, tmp_path, teacher_prompt="paper")
    assert text(example.teacher_prompt) == (
        "<|im_start|>user\nBackground reference knowledge: because\n"
        "Answer the question based on the reference knowledge: why?\nAnswer:<|im_end|>\n<|im_start|>assistant\n"
    )
    blind, _ = rendered(row, tmp_path, method="on_policy", teacher_prompt="paper")
    assert blind.teacher_prompt == blind.prompt


@pytest.mark.parametrize(
    ("method", "row", "expected"),
    [
        ("raft", {"fused_answer": "fused"}, "fused"),
        ("raft", {}, "raw"),
        ("sft", {"fused_answer": "fused"}, "raw"),
        ("on_policy", {"fused_answer": "fused"}, "raw"),
        ("sdft", {"fused_answer": "fused", "rewritten": "mine"}, "mine"),
        ("sdft", {"rewritten": "mine", "kept": False}, "raw"),
    ],
)
def test_the_method_chooses_the_answer(tmp_path, method, row, expected):
    example, _ = rendered({"question": "q", "answer": "raw", **row}, tmp_path, method=method)
    assert text(example.target) == f"{expected}<|im_end|>"


def test_without_the_answer_the_teacher_reads_what_the_student_reads(tmp_path):
    example, _ = rendered({"question": "q", "answer": "a"}, tmp_path, method="on_policy")
    assert example.teacher_prompt == example.prompt


def test_sdft_needs_a_rewritten_answer(tmp_path):
    with pytest.raises(InputError, match=r'row 0: field "rewritten": expected a text'):
        rendered({"question": "q", "answer": "a"}, tmp_path, method="sdft")


def test_chats_keep_their_history(tmp_path):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "2"},
    ]
    example, _ = rendered({"messages": messages}, tmp_path)
    assert text(example.prompt).startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\none<|im_end|>")
    assert text(example.target) == "2<|im_end|>"
    assert "What is known: 2<" in text(example.teacher_prompt) and "be brief" in text(example.teacher_prompt)


def test_a_template_that_does_not_continue_its_own_prompt():
    other = tokenizer()
    other.chat_template = other.chat_template.replace(
        "<|im_start|>assistant\\n' }}{% endif", "<|im_start|>assistant\\n<think>\\n' }}{% endif"
    )
    messages = [{"role": "user", "content": "q"}]
    ids = target_ids(other, messages, chat_ids(other, messages), "the answer", ENDS)
    assert other.decode(ids) == "the answer<|im_end|>"


def test_the_end_token_is_the_one_of_the_template():
    """As in Phi-4-mini: turns end with one token, the tokenizer names another."""
    other = tokenizer()
    other.eos_token = END_OF_TEXT
    messages = [{"role": "user", "content": "q"}]
    assert other.decode(target_ids(other, messages, chat_ids(other, messages), "a", ENDS)) == "a<|im_end|>"
    other.chat_template = "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
    assert other.decode(target_ids(other, messages, chat_ids(other, messages), "a", ENDS)) == "a\n<|endoftext|>"


def test_long_answers_are_cut_and_counted(tmp_path):
    example, cuts = rendered({"question": "q", "answer": "word " * 100}, tmp_path, max_length=80, method="sft")
    assert len(example.prompt) + len(example.target) == 80 and example.target[-1] not in ENDS
    assert cuts.targets == 1


@pytest.mark.parametrize(("method", "limit"), [("sft", 15), ("raft", 30)])
def test_long_questions_are_refused(tmp_path, method, limit):
    with pytest.raises(InputError, match=r"row x9: the prompt has \d+ tokens, which does not fit into max_length=\d+"):
        rendered({"id": "x9", "question": "word " * 20, "answer": "a"}, tmp_path, method=method, max_length=limit)


@settings(max_examples=40, deadline=None)
@given(
    answer=st.text(min_size=1, max_size=60).filter(str.strip),
    room=st.integers(60, 160),
    prompt=st.sampled_from(sorted(TEACHER_PROMPTS)),
)
def test_the_reference_is_cut_and_the_question_never(tmp_path_factory, answer, room, prompt):
    """Any text, cut anywhere inside its characters."""
    question = "what is the colour of the stone?"
    row = {"question": question, "answer": answer}
    budget = room + 10
    try:
        example, cuts = rendered(row, "out", teacher_max_length=budget, max_length=400, teacher_prompt=prompt)
    except InputError as error:
        assert "the question leaves the teacher no room" in str(error)
        messages = teacher_messages(normalize_rows([row])[0]["prompt"], answer, TEACHER_PROMPTS[prompt])
        assert len(chat_ids(TOKENS, messages)) > room
        return
    assert len(example.teacher_prompt) <= room
    shown = text(example.teacher_prompt)
    before, after = TEACHER_PROMPTS[prompt](question, "\0").split("\0")
    kept = shown.partition(before)[2].partition(f"{after}<|im_end|>")[0]
    assert answer.startswith(kept) and kept
    assert (kept != answer) == bool(cuts.references)


def test_the_teacher_needs_room_for_some_of_the_answer(tmp_path):
    with pytest.raises(
        InputError, match="row 0: the question leaves the teacher no room for an answer: teacher_max_length=60"
    ):
        rendered({"question": "word " * 30, "answer": "a"}, tmp_path, teacher_max_length=60)


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=7))
def test_packs_put_sequences_side_by_side(lengths):
    sequences = [[100 * i + t for t in range(n)] for i, n in enumerate(lengths)]
    packed = pack(sequences)
    assert packed.input_ids.tolist() == [[token for s in sequences for token in s]]
    assert packed.position_ids.tolist() == [[t for n in lengths for t in range(n)]]
    assert packed.offsets.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assert packed.tokens == sum(lengths) == sum(span.tokens for span in packed.spans)
    rows = packed.input_ids[0][packed.rows]
    for row, sequence in zip(rows.tolist(), sequences, strict=True):
        assert row[: len(sequence)] == sequence
    assert torch.equal(rows.flatten()[packed.back], packed.input_ids[0])


def test_a_micro_batch_predicts_every_answer_and_rollout_token(tmp_path):
    examples, _ = render(
        normalize_rows([{"question": f"q{'x' * i}", "answer": f"a{'y' * i}"} for i in range(3)]),
        TOKENS,
        config(tmp_path),
        ENDS,
    )
    rollouts = [
        [Completion([1, 2, 3], "stop"), Completion([], "stop")],
        [Completion([4], "length"), Completion([5, 6], "stop")],
        [Completion([], "stop"), Completion([7], "stop")],
    ]
    drawn = [[Scored(e, c) for c in own] for e, own in zip(examples, rollouts, strict=True)]
    micro = MicroBatch(examples, drawn)
    batch = student_batch(units(micro))
    ids = batch.pack.input_ids[0]
    assert [s.completion.token_ids for s in batch.scored] == [[1, 2, 3], [4], [5, 6], [7]]
    assert batch.sft_labels.tolist() == [t for e in examples for t in e.target]
    assert batch.kl_rollout.tolist() == [0, 0, 0, 1, 2, 2, 3]
    assert batch.kl_weights.tolist() == pytest.approx([1 / 3] * 3 + [1] + [1 / 2] * 2 + [1])
    # The token after a predicting position is the predicted one, but for the last of a turn, which is not an input.
    for turns, positions in (
        ([(e.prompt, e.target) for e in examples], batch.sft_positions),
        ([(s.example.prompt, s.completion.token_ids) for s in batch.scored], batch.kl_positions),
    ):
        at = iter(positions.tolist())
        for prompt, completion in turns:
            for i in range(len(completion)):
                position = next(at)
                assert batch.pack.position_ids[0, position] == len(prompt) - 1 + i
                assert ids[position] == ([*prompt, *completion])[len(prompt) - 1 + i]
    packed, positions = teacher_pack(batch.scored)
    assert len(positions) == len(batch.kl_positions) and packed.tokens == sum(
        len(s.example.teacher_prompt) + len(s.completion.token_ids) - 1 for s in batch.scored
    )
    assert [s.completion.token_ids for s in student_batch(units(micro, mask_truncated=True)).scored] == [
        [1, 2, 3],
        [5, 6],
        [7],
    ]
