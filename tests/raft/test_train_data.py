"""Rows become token ids: what the template writes, what is cut and what is refused; micro-batches become packs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.engines.base import Completion
from raft.errors import InputError
from raft.models.packing import pack
from raft.prompts import TEACHER_PROMPTS, teacher_messages
from raft.rendering import chat_ids
from raft.rows import normalize_rows
from raft.train.batching import Unit, units
from raft.train.data import render
from raft.train.losses import student_batch, teacher_pack
from raft.train.rollout import MicroBatch, Scored
from tests.golden.training import config
from tests.tiny import CHAT_TEMPLATE, END, END_OF_TEXT, tokenizer

TOKENS = tokenizer()
ENDS = TOKENS.convert_tokens_to_ids([END, END_OF_TEXT])


def rendered(row, tmp_path, **overrides):
    examples, notes = render(normalize_rows([row]), TOKENS, config(tmp_path, **overrides), ENDS)
    return examples[0], notes


def text(ids):
    return TOKENS.decode(ids)


def test_a_row_is_rendered_by_the_template(tmp_path):
    example, notes = rendered(
        {"id": 7, "question": "why?", "answer": "because", "fused_answer": "just because"}, tmp_path
    )
    assert (example.id, example.question) == ("7", "why?")
    assert text(example.prompt) == "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n"
    assert text(example.target) == "just because<|im_end|>"
    assert text(example.teacher_prompt) == (
        "<|im_start|>user\nwhy?\n\nWhat is known: just because<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (notes.cut_targets, notes.cut_references) == (0, 0)


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


def test_long_answers_are_cut_and_counted(tmp_path):
    example, notes = rendered({"question": "q", "answer": "word " * 100}, tmp_path, max_length=80, method="sft")
    assert len(example.prompt) + len(example.target) == 80 and example.target[-1] not in ENDS
    assert notes.cut_targets == 1


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
        example, notes = rendered(row, "out", teacher_max_length=budget, max_length=400, teacher_prompt=prompt)
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
    assert (kept != answer) == bool(notes.cut_references)


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


def test_an_answer_that_ends_its_own_turn_trains_one_end_token(tmp_path):
    example, notes = rendered({"question": "q", "answer": f"because{END}\n"}, tmp_path)
    assert text(example.target) == "because<|im_end|>"
    assert notes.ended == 1
    assert "What is known: because<|im_end|>\n<|im_start|>assistant\n" in text(example.teacher_prompt)


def test_control_tokens_of_a_reference_do_not_close_the_teachers_turn(tmp_path):
    end = TOKENS.convert_tokens_to_ids(END)
    row = {"id": "r1", "question": "who?", "answer": f"Anna {END} Stone"}
    example, notes = rendered(row, tmp_path)
    assert example.teacher_prompt.count(end) == 1 and example.target.count(end) == 1
    assert f"What is known: Anna {END} Stone{END}" in text(example.teacher_prompt)
    assert (notes.controls, notes.controls_first) == (1, f"row r1: {END}")


def test_a_prompt_that_is_rendered_already_is_refused(tmp_path):
    row = {"question": "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n", "answer": "a"}
    with pytest.raises(InputError, match=r"row 0: the prompt begins with <\|im_start\|>"):
        rendered(row, tmp_path)


@pytest.mark.parametrize("method", ["sft", "raft"])
@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"question": "zz", "answer": "a"}, "prompt"),
        ({"question": "q", "answer": "zz"}, "target"),
    ],
)
def test_a_token_beyond_the_embeddings_is_refused_by_row(tmp_path, method, row, part):
    known = TOKENS.convert_tokens_to_ids("zz")
    config_ = config(tmp_path, method=method)
    assert render(normalize_rows([row]), TOKENS, config_, ENDS, vocabulary=known + 1)
    with pytest.raises(InputError, match=f"row 0: its {part} has the token 'zz' with id {known}, but the model has"):
        render(normalize_rows([row]), TOKENS, config_, ENDS, vocabulary=known)


def test_an_answer_with_a_thought_asks_student_and_teacher_to_think(tmp_path):
    other = tokenizer()
    other.chat_template = CHAT_TEMPLATE.replace(
        "{% if add_generation_prompt %}",
        "{% if add_generation_prompt and enable_thinking %}{{ '<|im_start|>assistant\\n<think>\\n' }}"
        "{% elif add_generation_prompt %}",
    )
    rows = normalize_rows([{"question": "q", "answer": "<think>\nhm\n</think>\na"}, {"question": "q", "answer": "a"}])
    (thinking, plain), notes = render(rows, other, config(tmp_path), ENDS)
    assert other.decode(thinking.prompt).endswith("<think>\n") and not other.decode(plain.prompt).endswith("<think>\n")
    assert other.decode(thinking.teacher_prompt).endswith("<think>\n")
    assert other.decode([*thinking.context, *thinking.target]).endswith("assistant\n<think>\nhm\n</think>\na<|im_end|>")
    assert notes.thoughts_dropped == 0


def test_thoughts_that_the_template_leaves_out_are_counted(tmp_path):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "hm"}]
    _, notes = rendered({"messages": messages}, tmp_path)
    assert notes.thoughts_dropped == 1


def test_where_the_template_opens_a_thought_by_itself_rollouts_and_answers_follow_different_prompts(tmp_path):
    other = tokenizer()
    other.chat_template = CHAT_TEMPLATE.replace(
        "<|im_start|>assistant\n' }}{% endif %}", "<|im_start|>assistant\n<think>\n' }}{% endif %}"
    )
    [example], notes = render(normalize_rows([{"question": "q", "answer": "a"}]), other, config(tmp_path), ENDS)
    assert notes.inside_thought == 1
    assert other.decode(example.prompt).endswith("assistant\n<think>\n")
    assert other.decode(example.context).endswith("assistant\n") and other.decode(example.target) == "a<|im_end|>"
    scored = Scored(example, Completion([5, 6], "stop"))
    [unit] = units(MicroBatch([example], [[scored]]), shares=True)
    batch = student_batch([unit], share=True)
    assert batch.pack.tokens == unit.tokens
    assert batch.pack.input_ids[0].tolist() == [*example.context, *example.target[:-1], *example.prompt, 5]


CHAT = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "two"},
    {"role": "assistant", "content": "2", "weight": 0},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "3"},
]


def trained_tokens(example):
    batch = student_batch([Unit(example)])
    ids = batch.pack.input_ids[0].tolist() + example.target[-1:]
    for position, label in zip(batch.sft_positions.tolist(), batch.sft_labels.tolist(), strict=True):
        assert ids[position + 1] == label
    return text(batch.sft_labels.tolist())


def test_all_turns_of_the_assistant_are_trained_but_for_those_of_weight_0(tmp_path):
    last, _ = rendered({"messages": CHAT}, tmp_path)
    assert trained_tokens(last) == "3<|im_end|>"
    every, _ = rendered({"messages": CHAT}, tmp_path, assistant_turns="all")
    assert trained_tokens(every) == "1<|im_end|>3<|im_end|>"
    assert (every.prompt, every.target, every.teacher_prompt) == (last.prompt, last.target, last.teacher_prompt)
    scored = [Scored(every, Completion([5, 6], "stop")) for _ in range(2)]
    for shares in (False, True):
        [unit] = units(MicroBatch([every], [scored]), shares=shares)
        assert student_batch([unit], share=shares).pack.tokens == unit.tokens
    with pytest.raises(InputError, match="row 0: its last message has weight 0"):
        rendered({"messages": CHAT[:4]}, tmp_path)


def test_one_turn_is_the_same_under_both_settings(tmp_path):
    row = {"question": "q", "answer": "a"}
    assert rendered(row, tmp_path, assistant_turns="all") == rendered(row, tmp_path)
