"""HFEngine, the contract that all engines share, and the chat helpers."""

import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raft.engines import Engine, HFEngine, Sampling, chat_ids, make_engine, request_seed
from raft.engines.base import eos_ids
from raft.errors import ConfigError, InputError, ModelError
from raft.progress import Call
from tests.tiny import build

PROMPTS = [[5, 6, 7, 8], [300, 301], [17] * 12, [42], [700, 8, 9, 10, 11, 12, 13], [500, 400, 300]]
GREEDY = Sampling(temperature=0, max_tokens=12)
DRAWN = Sampling(temperature=1.0, max_tokens=12, seed=1)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return build("qwen3", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(path):
    return AutoTokenizer.from_pretrained(path)


@pytest.fixture
def model(path):
    return AutoModelForCausalLM.from_pretrained(path)


@pytest.fixture
def engine(model, tokenizer):
    return HFEngine(model, tokenizer, max_model_len=64)


def step_by_step(model, prompt: list[int], n: int) -> list[int]:
    """Greedy decoding without cache, batch or padding."""
    ids = list(prompt)
    for _ in range(n):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in eos_ids(model, None):
            break
    return ids[len(prompt) :]


def test_it_is_an_engine(engine):
    assert isinstance(engine, Engine)
    assert (engine.name, engine.weights.mode) == ("hf", "shared")


def test_greedy_is_the_models_own_choice_whatever_the_padding(engine, model):
    completions = engine.generate(PROMPTS, GREEDY)
    assert [c.token_ids for c in completions] == [step_by_step(model, p, 12) for p in PROMPTS]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_draws_do_not_depend_on_batching(engine, model, tokenizer, batch_size):
    small = HFEngine(model, tokenizer, max_model_len=64, batch_size=batch_size)
    assert small.generate(PROMPTS, DRAWN) == engine.generate(PROMPTS, DRAWN)
    assert small.generate(PROMPTS[:2], DRAWN) == engine.generate(PROMPTS, DRAWN)[:2]


def test_draws_follow_the_seed_and_the_place_in_the_call(engine):
    first = engine.generate(PROMPTS, DRAWN)
    assert engine.generate(PROMPTS, DRAWN) == first
    assert engine.generate(PROMPTS, Sampling(max_tokens=12, seed=2)) != first
    same_prompt = engine.generate([PROMPTS[0]] * 4, DRAWN)
    assert len({tuple(c.token_ids) for c in same_prompt}) == 4


def test_a_seed_belongs_to_its_request(engine):
    seeds = [7, 2**63 - 1, 0, 7, 5, 7]
    found = engine.generate(PROMPTS, DRAWN, seeds=seeds)
    for order in ([5, 0, 3, 1, 4, 2], [2], [4, 1]):
        chosen, own = [PROMPTS[i] for i in order], [seeds[i] for i in order]
        assert engine.generate(chosen, Sampling(max_tokens=12, seed=99), seeds=own) == [found[i] for i in order]
    # The default is a seed for each place in the call.
    assert engine.generate(PROMPTS, DRAWN, seeds=[request_seed(1, i) for i in range(6)]) == engine.generate(
        PROMPTS, DRAWN
    )
    assert engine.generate([PROMPTS[0]] * 2, DRAWN, seeds=[3, 3])[0] == engine.generate([PROMPTS[0]], DRAWN, [3])[0]


def test_a_seed_does_not_depend_on_the_room_that_others_have(model, tokenizer):
    """A row of uniform numbers begins alike, however many of them are drawn."""
    engine = HFEngine(model, tokenizer, max_model_len=64)
    [alone] = engine.generate([[17] * 50], Sampling(max_tokens=40), seeds=[4])
    beside = engine.generate([[17] * 50, [5]], Sampling(max_tokens=40), seeds=[4, 4])
    assert beside[0] == alone and len(alone.token_ids) <= 14 < len(beside[1].token_ids)


def test_drafts_are_a_hint(engine):
    drafts = [[[5, 6, 7]]] * len(PROMPTS)
    assert engine.generate(PROMPTS, DRAWN, drafts=drafts) == engine.generate(PROMPTS, DRAWN)


@pytest.mark.parametrize(("seeds", "words"), [([1], "each of 2 prompts, got 1"), ([0, -1], "got -1 for prompt 1")])
def test_bad_seeds_are_named(engine, seeds, words):
    with pytest.raises(InputError, match=words):
        engine.generate(PROMPTS[:2], DRAWN, seeds=seeds)


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=1), Sampling(max_tokens=1, temperature=1.7, top_p=0.6)])
def test_draws_have_the_models_distribution(engine, model, sampling):
    n = 2000
    drawn = engine.generate([PROMPTS[0]] * n, sampling)
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in drawn]), minlength=model.config.vocab_size)
    with torch.no_grad():
        p = torch.softmax(model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].double() / sampling.temperature, -1)
    sorted_p, order = p.sort(descending=True)
    kept = order[(sorted_p.cumsum(0) - sorted_p) < sampling.top_p]
    expected = torch.zeros_like(p).index_put((kept,), p[kept] / p[kept].sum())
    assert counts[expected == 0].sum() == 0
    # Chi-square over the tokens that are frequent enough, the rest as one; 5 deviations off is a wrong sampler.
    often = expected * n >= 10
    e = torch.cat([expected[often], expected[~often].sum(0, keepdim=True)]) * n
    o = torch.cat([counts[often], counts[~often].sum(0, keepdim=True)]).double()
    e, o = e[e > 0], o[e > 0]
    freedom = len(e) - 1
    assert ((o - e) ** 2 / e).sum() < freedom + 5 * (2 * freedom) ** 0.5


def test_the_phase_around_it_sees_what_is_finished(engine, monkeypatch):
    seen = []
    monkeypatch.setattr(Call, "finished", lambda call, n=1: seen.append((call.total, n)))
    sampling = Sampling(temperature=1.0, max_tokens=12, seed=3, stop_token_ids=tuple(range(0, 900, 4)))
    lengths = {len(c.token_ids) for c in engine.generate(PROMPTS, sampling)}
    assert sum(n for _, n in seen) == len(PROMPTS) and {total for total, _ in seen} == {len(PROMPTS)}
    assert len([n for _, n in seen if n]) == len(lengths) > 1  # each row as it ends, not all at the end


def test_every_eos_id_ends_a_completion_and_stays_in_it(model, tokenizer):
    free = HFEngine(model, tokenizer).generate(PROMPTS, GREEDY)
    long = max(free, key=lambda c: len(c.token_ids)).token_ids
    model.generation_config.eos_token_id = [3, long[4]]
    cut = HFEngine(model, tokenizer).generate(PROMPTS, GREEDY)
    for before, after in zip(free, cut, strict=True):
        end = before.token_ids.index(long[4]) + 1 if long[4] in before.token_ids else len(before.token_ids)
        assert after.token_ids == before.token_ids[:end]
        assert after.finish_reason == ("stop" if after.token_ids[-1] in (3, long[4]) else "length")
    assert "stop" in {c.finish_reason for c in cut}


def test_stop_token_ids_come_on_top(engine):
    token = engine.generate(PROMPTS[:1], GREEDY)[0].token_ids[2]
    got = engine.generate(PROMPTS[:1], Sampling(temperature=0, max_tokens=12, stop_token_ids=(token,)))[0]
    assert got.token_ids[-1] == token and len(got.token_ids) <= 3 and got.finish_reason == "stop"


def test_length_is_marked_at_max_tokens_and_at_the_end_of_the_context(model, tokenizer):
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    engine = HFEngine(model, SimpleNamespace(eos_token_id=None), max_model_len=16)
    got = engine.generate([[5] * 4, [5] * 14], Sampling(temperature=0, max_tokens=7))
    assert [(len(c.token_ids), c.finish_reason) for c in got] == [(7, "length"), (2, "length")]


def test_the_models_own_generation_settings_stay_out(engine, model):
    plain = engine.generate(PROMPTS, DRAWN)
    model.generation_config.update(repetition_penalty=5.0, top_k=1, do_sample=True, max_new_tokens=2)
    assert engine.generate(PROMPTS, DRAWN) == plain
    assert model.generation_config.repetition_penalty == 5.0


def test_generating_leaves_the_model_and_the_random_state_alone(engine, model):
    model.train()
    state = torch.get_rng_state()
    engine.generate(PROMPTS, DRAWN)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_it_sees_new_weights_at_once(engine, model):
    before = engine.generate(PROMPTS, GREEDY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    engine.refresh()
    after = engine.generate(PROMPTS, GREEDY)
    assert after != before
    assert [c.token_ids for c in after] == [step_by_step(model, p, 12) for p in PROMPTS]


def test_no_prompts_no_completions(engine):
    assert engine.generate([], DRAWN) == []


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt 1: expected 1 to 63 tokens"),
        ([5] * 64, "got 64"),
        ([5, 936], r"in \[0, 936\)"),
        ([-1], "got -1 to -1"),
    ],
)
def test_bad_prompts_are_named(engine, prompt, message):
    with pytest.raises(InputError, match=message):
        engine.generate([[5], prompt], GREEDY)


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"max_tokens": 0}])
def test_bad_sampling_is_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Sampling(**bad)


def test_request_seeds_are_apart():
    seeds = {request_seed(seed, i) for seed in range(100) for i in range(100)}
    assert len(seeds) == 10_000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_context_is_never_longer_than_the_models(model, tokenizer):
    assert HFEngine(model, tokenizer, max_model_len=10**6).max_model_len == model.config.max_position_embeddings


def test_a_folder_does_as_well(path, engine):
    from_disk = HFEngine(path, max_model_len=64)
    assert from_disk.weights.mode == "disk"
    assert from_disk.generate(PROMPTS, DRAWN) == engine.generate(PROMPTS, DRAWN)


def test_a_folder_without_a_model_is_refused(tmp_path, tokenizer):
    with pytest.raises(ModelError, match="expected a folder with a language model"):
        HFEngine(tmp_path, tokenizer)


def test_chat_ids_are_those_of_the_template(tokenizer):
    messages = [{"role": "user", "content": "Hi “you”"}]
    assert tokenizer.decode(chat_ids(tokenizer, messages)) == (
        "<|im_start|>user\nHi “you”<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(chat_ids(tokenizer, messages, False)).endswith("<|im_end|>\n")


def test_chat_ids_need_a_template(path):
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        chat_ids(tokenizer, [{"role": "user", "content": "Hi"}])


def test_models_are_asked_not_to_think(path):
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = "{{ 'no' if enable_thinking is defined and not enable_thinking else 'yes' }}"
    assert tokenizer.decode(chat_ids(tokenizer, [{"role": "user", "content": "Hi"}])) == "no"
    assert tokenizer.decode(chat_ids(tokenizer, [{"role": "user", "content": "Hi"}], enable_thinking=True)) == "yes"


def test_make_engine_knows_its_kinds(model, tokenizer):
    assert make_engine("hf", model, tokenizer).name == "hf"
    with pytest.raises(ConfigError, match="expected auto, vllm or hf, got 'tgi'"):
        make_engine("tgi", model, tokenizer)


def test_auto_without_vllm_says_so(model, tokenizer, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed
    with caplog.at_level(logging.WARNING):
        assert make_engine("auto", model, tokenizer).name == "hf"
    assert "vLLM is not installed" in caplog.text
