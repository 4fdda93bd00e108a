"""The likelihood of given answers, against one unpadded forward pass an answer and a float64 softmax."""

import pytest
import torch

from raft.evaluate.likelihood import log_likelihoods
from raft.models import load_model, load_tokenizer
from tests.tiny import build

CHATS = ("Hi", "What is that over there?", "Hi", "b", "Hi")
ANSWERS = ("Hello there.", "A mill.", "", "A long answer, much longer than the others are.", "Good evening to you.")


def expected(model, tokenizer, question, answer, limit=None):
    chat = [{"role": "user", "content": question}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    said = tokenizer(answer)["input_ids"][:limit]
    with torch.no_grad():
        logits = model(torch.tensor([asked + said])).logits[0].double()
    chosen = torch.log_softmax(logits, -1)[range(len(asked) - 1, len(asked) + len(said) - 1), said]
    return pytest.approx(chosen.mean().item(), abs=1e-4) if said else None


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_agrees_with_plain_forward_passes(tmp_path, family, limit):
    build(family, tmp_path)
    model, tokenizer = load_model(tmp_path), load_tokenizer(tmp_path)
    chats = [[{"role": "user", "content": text}] for text in CHATS]
    known = [expected(model.eval(), tokenizer, *pair, limit) for pair in zip(CHATS, ANSWERS, strict=True)]
    for tokens in (2048, 60, 1):  # one pack with a shared chat, some, one answer each
        found = log_likelihoods(model.train(), tokenizer, chats, ANSWERS, max_tokens=limit, pack_tokens=tokens)
        assert model.training and found[2] is None
        assert found == known


def test_nothing_to_score(tmp_path):
    build("qwen3", tmp_path)
    assert log_likelihoods(load_model(tmp_path), load_tokenizer(tmp_path), [], []) == []
