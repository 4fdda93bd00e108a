"""Chat models: requests in, replies or failures out, each for its own request."""

from collections import Counter

import pytest

from raft.chat import ChatRequest, Failure, LocalChat, Reply, generate_text
from raft.engines import Completion, Sampling, chat_ids
from raft.errors import EngineError
from tests.tiny import tokenizer as make_tokenizer

TOKENIZER = make_tokenizer()


class Told:
    """An engine that says the last word of its prompt, its seed and temperature; some words mean another result."""

    tokenizer = TOKENIZER
    max_model_len = 60

    def __init__(self):
        self.calls = []

    def generate(self, prompts, sampling, seeds):
        self.calls.append((len(prompts), sampling.temperature, sampling.max_tokens))
        return [self._one(ids, sampling, seed) for ids, seed in zip(prompts, seeds, strict=True)]

    def _one(self, ids, sampling, seed):
        word = TOKENIZER.decode(ids).split("<|im_end|>")[-2].split()[-1]
        if word == "raise":
            raise ValueError("no such\nword")
        if word == "broken":
            raise EngineError("closed")
        if word == "cut":
            return Completion([5] * sampling.max_tokens, "length")
        if word == "full":
            return Completion([5], "length")
        text = {"empty": "", "thought": "<think>\nhm\n</think>\n\nIt"}.get(
            word, f"{word} {seed} {sampling.temperature}"
        )
        return Completion([*TOKENIZER(text)["input_ids"], TOKENIZER.eos_token_id], "stop")


def request(text, seed=0, **given):
    return ChatRequest([{"role": "user", "content": text}], seed, **given)


def replies(requests, engine=None, **options):
    engine = engine or Told()
    found = list(LocalChat("m", lambda: engine, **options).replies(requests))
    assert Counter(place for place, _ in found) == Counter(range(len(requests)))
    return [reply for _, reply in sorted(found, key=lambda one: one[0])]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_every_request_has_its_own_seed_and_sampling(batch_size):
    engine = Told()
    asked = [request(f"say w{i}", i, temperature=(0.5, 1.0)[i % 3 == 0], max_tokens=30 + i % 2) for i in range(7)]
    found = replies(asked, engine, batch_size=batch_size)
    assert [reply.text for reply in found] == [f"w{i} {i} {(0.5, 1.0)[i % 3 == 0]}" for i in range(7)]
    assert all(n <= batch_size for n, *_ in engine.calls)
    assert {call[1:] for call in engine.calls} == {(one.temperature, one.max_tokens) for one in asked}


def test_one_way_of_sampling_is_one_call():
    engine = Told()
    replies([request("a", i) for i in range(7)], engine, batch_size=4)
    assert engine.calls == [(4, 1.0, 512), (3, 1.0, 512)]


def test_what_came_of_a_request():
    words = ["fine", "thought", "empty", "cut", "full", "raise", "long " * 80]
    fine, thought, empty, cut, full, raised, long = replies([request(word, 3, max_tokens=9) for word in words])
    assert (fine.text, fine.thought) == ("fine 3 1.0", None) and isinstance(fine, Reply)
    assert fine.tokens == len(TOKENIZER("fine 3 1.0")["input_ids"]) + 1
    assert (thought.text, thought.thought) == ("It", "hm")
    assert empty == Failure("the output is empty", lasting=True, tokens=1)
    assert cut == Failure("the output was cut at max_tokens, after 9 tokens", lasting=True, tokens=9)
    end = "the output was cut at the end of the context (max_model_len), after 1 tokens"
    assert full == Failure(end, lasting=True, tokens=1)
    assert raised == Failure("ValueError: no such word", lasting=False)
    # The engine's context is shorter than the one that is allowed.
    assert long.lasting and long.tokens == 0 and "expected fewer than 60 (max_model_len)" in long.reason


def test_the_context_that_is_allowed_may_be_the_shorter_one():
    [failure] = replies([request("a")], max_model_len=3)
    assert "expected fewer than 3 (max_model_len)" in failure.reason


def test_a_template_may_refuse_a_chat():
    engine = Told()
    engine.tokenizer = make_tokenizer()
    engine.tokenizer.chat_template = "{{ raise_exception('no system') }}"
    [failure] = replies([request("a")], engine)
    assert not failure.lasting and "no system" in failure.reason


def test_what_every_request_would_meet_is_raised():
    with pytest.raises(EngineError, match="closed"):
        replies([request("fine"), request("broken")])


def test_the_engine_is_made_when_the_first_reply_is_wanted():
    made = []

    def make():
        made.append(Told())
        return made[-1]

    chat = LocalChat("m", make)
    assert list(chat.replies([])) == [] and not made
    waiting = chat.replies([request("a")])
    assert not made
    assert next(waiting)[0] == 0 and len(made) == 1


@pytest.mark.parametrize("before", ["", "<think>\nhm\n</think>\n", "hm</think>"])
def test_generate_text_gives_clean_text(before):
    class Parrot:
        def __init__(self):
            self.tokenizer = TOKENIZER

        def generate(self, prompts, sampling):
            return [
                Completion([*TOKENIZER(f"{before} {len(p)} ok \n").input_ids, TOKENIZER.eos_token_id], "stop")
                for p in prompts
            ]

    chats = [[{"role": "user", "content": "a"}], [{"role": "user", "content": "some more"}]]
    lengths = [len(chat_ids(TOKENIZER, chat)) for chat in chats]
    assert generate_text(Parrot(), chats, Sampling(max_tokens=12)) == [f"{n} ok" for n in lengths]
