"""The real vLLM in this process, against the model's own generation: the same weights must give the same tokens."""

import copy
import logging
import os
import random
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from raft.engines import HFEngine, Sampling, VLLMEngine, make_engine
from raft.errors import ConfigError, EngineError, InputError, ModelError
from raft.models.language_model import LanguageModel
from raft.progress import Call
from tests.tiny import build
from tests.tiny import tokenizer as make_tokenizer

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = [pytest.mark.vllm, pytest.mark.slow]

_rng = random.Random(0)
PROMPTS = [[_rng.randrange(10, 900) for _ in range(_rng.randrange(1, 40))] for _ in range(12)]
GREEDY = Sampling(temperature=0, max_tokens=16)
DRAWN = Sampling(temperature=1.0, max_tokens=16, seed=5)
SMALL = {"max_model_len": 384, "max_num_seqs": 16}


def train(model, steps=3) -> None:
    """Enough to give every prompt another answer."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(0)
    for _ in range(steps):
        ids = torch.randint(10, 900, (4, 32))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def own(model, sampling=GREEDY, prompts=PROMPTS):
    return HFEngine(model, make_tokenizer(), max_model_len=384).generate(prompts, sampling)


def follows(engine, model, rounds=1) -> None:
    """After training and a refresh the engine's greedy tokens are the model's own, and not those from before."""
    before = engine.generate(PROMPTS, GREEDY)
    assert before == own(model)
    for _ in range(rounds):
        train(model)
        engine.refresh()
        after = engine.generate(PROMPTS, GREEDY)
        assert after == own(model)
        assert after != before
        before = after


class Started:
    """A model with its engine, and what the process was like before the engine started."""

    def __init__(self, path: Path, weights="auto", dtype=torch.float32):
        self.path = path
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        self.process = self.now()
        self.engine = VLLMEngine(self.model, self.tokenizer, weights=weights, **SMALL)
        self.process_after = self.now()

    @staticmethod
    def now():
        return {
            "threads": torch.get_num_threads(),
            "set_num_threads": torch.set_num_threads,
            "cores": os.sched_getaffinity(0),
            "environment": {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")},
            "random": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),
        }


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", ["qwen3", "llama", "smollm3", "phi3"])
def test_shared_weights_follow_the_training_without_a_copy(family, tied, lora, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(build(family, tmp_path, tie_word_embeddings=tied))
    if lora:
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(
            r=4, lora_alpha=32, target_modules="all-linear", init_lora_weights=False,
            rank_pattern={"o_proj": 9}, alpha_pattern={"down_proj": 16},
        )  # fmt: skip
        model = peft.get_peft_model(model, config)
    engine = VLLMEngine(model, make_tokenizer(), weights="shared", **SMALL)
    try:
        assert engine.weights.mode == "shared"
        follows(engine, model, rounds=2)
        [theirs] = engine.llm.apply_model(storages)
        assert {p.untyped_storage().data_ptr() for n, p in model.named_parameters() if ".lora_" not in n} <= theirs
        if lora:
            adapted = engine.generate(PROMPTS, GREEDY)
            with model.disable_adapter():
                engine.refresh()
                assert adapted != engine.generate(PROMPTS, GREEDY) == own(model)
    finally:
        engine.close()


def storages(model) -> set[int]:
    return {p.untyped_storage().data_ptr() for p in model.parameters()}


def test_biases_are_shared_as_well(tmp_path):
    started = Started(build("qwen2", tmp_path), weights="shared")
    try:
        follows(started.engine, started.model)
        assert [storages(started.model)] == started.engine.llm.apply_model(storages)
    finally:
        started.engine.close()


def test_bfloat16_shares_as_well(tmp_path):
    started = Started(build("llama", tmp_path), weights="shared", dtype=torch.bfloat16)
    try:
        train(started.model)
        started.engine.refresh()
        first_tokens = [c.token_ids[0] for c in started.engine.generate(PROMPTS, GREEDY)]
        started.model.eval()
        clear = 0
        for prompt, token in zip(PROMPTS, first_tokens, strict=True):
            with torch.no_grad():
                logits = started.model(input_ids=torch.tensor([prompt])).logits[0, -1].float()
            best = logits.topk(2)
            if best.values[0] - best.values[1] > 0.1:  # closer ones may swap by the rounding of bfloat16
                clear += 1
                assert token == best.indices[0]
        assert clear >= len(PROMPTS) // 2
    finally:
        started.engine.close()


def test_copied_weights_follow_at_refresh_only(tmp_path):
    started = Started(build("phi3", tmp_path), weights="copied")
    try:
        assert started.engine.weights.mode == "copied"
        before = own(started.model)
        assert started.engine.generate(PROMPTS, GREEDY) == before
        train(started.model)
        assert started.engine.generate(PROMPTS, GREEDY) == before
        started.engine.refresh()
        after = started.engine.generate(PROMPTS, GREEDY)
        assert after == own(started.model) != before
    finally:
        started.engine.close()


def test_adapters_that_vllm_has_no_form_for_are_merged_into_a_copy(tmp_path, caplog):
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(build("llama", tmp_path))
    config = peft.LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "embed_tokens"], init_lora_weights=False)
    model = peft.get_peft_model(base, config)
    with pytest.raises(EngineError, match="weights='shared' is not possible: .*embed_tokens is a Embedding with an ad"):
        VLLMEngine(model, make_tokenizer(), weights="shared", **SMALL)
    with caplog.at_level(logging.INFO, logger="raft"):
        engine = VLLMEngine(model, make_tokenizer(), **SMALL)
    try:
        assert engine.weights.mode == "copied"
        assert "with merged adapters at each refresh" in caplog.text
        follows(engine, model)
    finally:
        engine.close()


@pytest.mark.parametrize("kind", [{"use_dora": True}, {"lora_bias": True}], ids=str)
def test_adapters_that_cannot_be_merged_either_are_left_to_transformers(kind, tmp_path, caplog):
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(build("qwen2", tmp_path))
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"], **kind))
    assert make_engine("auto", model, make_tokenizer(), **SMALL).name == "hf"
    assert "q_proj.base_layer has DoRA or a bias" in caplog.text


def test_adapters_that_transformers_put_into_the_model_are_served_too(tmp_path):
    peft = pytest.importorskip("peft")
    model = AutoModelForCausalLM.from_pretrained(build("qwen3", tmp_path))
    model.add_adapter(peft.LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj"], init_lora_weights=False))
    engine = VLLMEngine(model, make_tokenizer(), weights="shared", **SMALL)
    try:
        follows(engine, model)
    finally:
        engine.close()


def test_other_adapters_than_lora_are_left_to_transformers(tmp_path, caplog):
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(build("qwen3", tmp_path))
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = peft.get_peft_model(base, config)
    assert make_engine("auto", model, make_tokenizer(), **SMALL).name == "hf"
    assert "PROMPT_TUNING adapters cannot be merged" in caplog.text
    with pytest.raises(EngineError, match="PROMPT_TUNING adapters"):
        make_engine("auto", model, make_tokenizer(), weights="shared", **SMALL)
    with pytest.raises(ModelError, match="expected LoRA adapters or none, found virtual tokens"):
        LanguageModel(model)


def test_lora_can_be_copied_with_its_adapters_merged(tmp_path):
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(build("qwen3", tmp_path))
    config = peft.LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(base, config)
    engine = VLLMEngine(model, make_tokenizer(), weights="copied", **SMALL)
    try:
        follows(engine, model)
    finally:
        engine.close()


def test_a_model_in_memory_that_vllm_keeps_in_another_form(caplog):
    """GPT-2: vLLM transposes its matrices. No folder holds this model, and a failed start must not harm the next."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            n_embd=128,
            n_layer=2,
            n_head=4,
            vocab_size=936,
            n_positions=384,
            initializer_range=0.1,
            eos_token_id=3,
            bos_token_id=None,
        )
    )
    with pytest.raises(EngineError, match="weights='shared' is not possible: "):
        VLLMEngine(model, make_tokenizer(), weights="shared", **SMALL)
    with caplog.at_level(logging.INFO, logger="raft"):
        engine = make_engine("auto", model, make_tokenizer(), **SMALL)
    try:
        assert (engine.name, engine.weights.mode) == ("vllm", "copied")
        assert "a copy of the weights at each refresh" in caplog.text
        follows(engine, model)
    finally:
        engine.close()


def test_experts_that_vllm_packs_are_left_to_transformers(tmp_path, caplog):
    """On a CPU it packs them for its kernels: a refresh that loads them as they are would give other tokens."""
    model = AutoModelForCausalLM.from_pretrained(build("qwen3_moe", tmp_path))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    engine = make_engine("auto", model, make_tokenizer(), **SMALL)
    assert engine.name == "hf"
    assert "has packed model.layers.0.mlp.experts" in caplog.text
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    with pytest.raises(EngineError, match=r"weights='shared' is not possible: .*experts"):
        VLLMEngine(model, make_tokenizer(), weights="shared", **SMALL)


def test_a_head_that_is_not_tied_whatever_the_setting_says(tmp_path):
    """vLLM goes by the setting; left alone it would take the embeddings for the head."""
    model = AutoModelForCausalLM.from_pretrained(build("qwen3", tmp_path, tie_word_embeddings=True))
    torch.manual_seed(1)
    model.lm_head.weight = torch.nn.Parameter(0.1 * torch.randn_like(model.lm_head.weight))
    engine = VLLMEngine(model, make_tokenizer(), weights="shared", **SMALL)
    try:
        follows(engine, model)
    finally:
        engine.close()


def test_adapters_that_come_after_the_engine_are_noticed(tmp_path):
    peft = pytest.importorskip("peft")
    model = AutoModelForCausalLM.from_pretrained(build("llama", tmp_path))
    engine = VLLMEngine(model, make_tokenizer(), weights="shared", **SMALL)
    try:
        engine.refresh()
        peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"]))
        with pytest.raises(EngineError, match="got LoRA adapters after this engine was built"):
            engine.refresh()
    finally:
        engine.close()


def test_a_weight_that_vllm_needs_and_does_not_get(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(build("llama", tmp_path))
    model.model.layers[1].self_attn.k_proj = torch.nn.Identity()
    with pytest.raises(EngineError, match=r"lacks 1 weights .* model.layers.1.self_attn.qkv_proj.weight"):
        VLLMEngine(model, make_tokenizer(), weights="copied", **SMALL)


def test_a_folder_is_read_once(tmp_path):
    path = build("llama", tmp_path, max_position_embeddings=100)
    engine = VLLMEngine(path, max_num_seqs=16)
    try:
        assert engine.weights.mode == "disk"
        assert engine.max_model_len == 100
        engine.refresh()
        model = AutoModelForCausalLM.from_pretrained(path)
        assert engine.generate(PROMPTS, GREEDY) == own(model)
    finally:
        engine.close()


def test_close_frees_and_says_so(tmp_path):
    started = Started(build("qwen3", tmp_path))
    [alive] = started.engine.llm.collective_rpc(
        lambda worker: [weakref.ref(t) for t in (*worker.model_runner.kv_caches, worker.model_runner.model)]
    )
    started.engine.close()
    started.engine.close()
    assert [ref() for ref in alive] == [None] * len(alive)
    assert not torch.distributed.is_initialized()
    with pytest.raises(EngineError, match="was closed"):
        started.engine.generate(PROMPTS, GREEDY)
    own(started.model)  # the model lives on


def test_without_a_class_of_vllms_own_transformers_takes_over(caplog):
    config = AutoConfig.for_model(
        "olmo2", hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=936
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(EngineError, match="no class of its own for Olmo2ForCausalLM"):
        VLLMEngine(model, make_tokenizer())
    with caplog.at_level(logging.WARNING, logger="raft"):
        engine = make_engine("auto", model, make_tokenizer())
    assert engine.name == "hf"
    assert "no class of its own for Olmo2ForCausalLM" in caplog.text
    own(model)


def test_bad_settings_are_refused_before_anything_starts(tmp_path):
    with pytest.raises(ConfigError, match="expected auto, shared or copied, got 'mine'"):
        VLLMEngine(tmp_path, weights="mine")
    with pytest.raises(ConfigError, match="needs a model under training"):
        VLLMEngine(tmp_path, weights="shared")
    with pytest.raises(ModelError, match="expected a folder with a tokenizer"):
        VLLMEngine(tmp_path)


# From here on the tests have one engine together.


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    started = Started(build("qwen3", tmp_path_factory.mktemp("qwen3"), seed=1))
    yield started
    started.engine.close()


def test_the_process_stays_as_it_was(qwen3):
    for name, value in qwen3.process.items():
        assert qwen3.process_after[name] == value, name


def test_draws_reproduce_and_leave_the_random_state_alone(qwen3):
    state = torch.get_rng_state()
    first = qwen3.engine.generate(PROMPTS, DRAWN)
    assert torch.equal(torch.get_rng_state(), state)
    assert qwen3.engine.generate(PROMPTS, DRAWN) == first
    assert qwen3.engine.generate(PROMPTS[:5], DRAWN) == first[:5]
    assert qwen3.engine.generate(PROMPTS, Sampling(max_tokens=16, seed=6)) != first
    assert len({tuple(c.token_ids) for c in qwen3.engine.generate([PROMPTS[0]] * 8, DRAWN)}) == 8
    seeds = list(range(len(PROMPTS)))
    own = qwen3.engine.generate(PROMPTS, DRAWN, seeds=seeds)
    assert own != first and qwen3.engine.generate(PROMPTS[::-1], DRAWN, seeds=seeds[::-1]) == own[::-1]


@pytest.mark.parametrize(
    "sampling", [DRAWN, replace(DRAWN, temperature=0.7, top_p=0.9), GREEDY], ids=["plain", "tempered", "greedy"]
)
def test_log_probabilities_are_the_models_own_and_change_no_token(qwen3, sampling):
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    found = qwen3.engine.generate(PROMPTS, replace(sampling, logprobs=3))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before  # nothing had to be compiled for it
    assert [replace(c, logprobs=None) for c in found] == qwen3.engine.generate(PROMPTS, sampling)
    assert [c.logprobs is not None for c in found] == [i < 3 for i in range(len(found))]
    for prompt, completion in zip(PROMPTS, found[:3], strict=False):
        ids = torch.tensor([prompt + completion.token_ids])
        with torch.no_grad():
            logits = qwen3.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits, -1).gather(-1, ids[0, len(prompt) :, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=1e-4, atol=1e-4)


def test_more_requests_than_run_at_once_come_back_in_order(qwen3):
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(100)]
    expected = own(qwen3.model)
    assert qwen3.engine.generate(prompts, GREEDY) == [expected[i % len(PROMPTS)] for i in range(100)]


def test_the_phase_around_it_sees_what_is_finished(qwen3, monkeypatch):
    seen = []
    monkeypatch.setattr(Call, "finished", lambda call, n=1: seen.append(n))
    sampling = Sampling(temperature=1.0, max_tokens=16, seed=3, stop_token_ids=tuple(range(0, 900, 4)))
    qwen3.engine.generate(PROMPTS, sampling)
    assert sum(seen) == len(PROMPTS) and len(seen) > 1


def test_no_prompts_no_completions(qwen3):
    assert qwen3.engine.generate([], DRAWN) == []


def test_bad_prompts_are_named_and_do_no_harm(qwen3):
    with pytest.raises(InputError, match="prompt 1: expected 1 to 383 tokens"):
        qwen3.engine.generate([[5], [5] * 384], GREEDY)
    with pytest.raises(InputError, match="token ids must be in"):
        qwen3.engine.generate([[5], [936]], GREEDY)
    assert qwen3.engine.generate(PROMPTS, GREEDY) == own(qwen3.model)


def test_stop_and_length_are_marked_as_by_the_model_itself(qwen3):
    sampling = Sampling(temperature=1.0, max_tokens=300, seed=1, stop_token_ids=(50, 51, 52))
    got = qwen3.engine.generate(PROMPTS, sampling)
    ends = {1, 3, 50, 51, 52}  # the two EOS ids of the model, and ours
    assert {c.finish_reason for c in got} == {"stop", "length"} or all(c.finish_reason == "stop" for c in got)
    for completion in got:
        assert (completion.token_ids[-1] in ends) == (completion.finish_reason == "stop")
        assert not ends & set(completion.token_ids[:-1])
    at_the_end = qwen3.engine.generate([[5] * 380], Sampling(temperature=0, max_tokens=300))[0]
    assert at_the_end == own(qwen3.model, Sampling(temperature=0, max_tokens=300), [[5] * 380])[0]
    assert len(at_the_end.token_ids) <= 4


def test_the_prefix_cache_is_not_stale(qwen3):
    prompt = [_rng.randrange(10, 900) for _ in range(300)]  # two whole blocks of 128 are cached
    qwen3.engine.generate([prompt], GREEDY)
    assert qwen3.engine.generate([prompt], GREEDY) == own(qwen3.model, prompts=[prompt])
    train(qwen3.model)
    expected = own(qwen3.model, prompts=[prompt])
    qwen3.engine.weights.refresh()  # without the reset of the cache, this is what would come:
    assert qwen3.engine.generate([prompt], GREEDY) != expected
    qwen3.engine.refresh()
    assert qwen3.engine.generate([prompt], GREEDY) == expected


def test_release_gives_the_cache_back_and_generate_goes_on(qwen3):
    engine = qwen3.engine
    expected = engine.generate(PROMPTS, GREEDY)
    [cache] = engine.llm.collective_rpc(lambda worker: worker.model_runner.kv_caches[0])
    assert cache.abs().sum() > 0
    engine.release()
    engine.release()
    assert cache.abs().sum() == 0  # read anew from the system, as zeros
    engine.resume()
    assert engine.generate(PROMPTS, GREEDY) == expected
    engine.release()
    assert engine.generate(PROMPTS, GREEDY) == expected


def test_a_saved_model_is_whole_and_plain(qwen3, tmp_path):
    qwen3.model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert own(again) == qwen3.engine.generate(PROMPTS, GREEDY)
    size = sum(f.stat().st_size for f in tmp_path.glob("*.safetensors"))
    assert size < 1.1 * sum(p.numel() * 4 for p in again.parameters())  # not the engine's storage around each view


def test_a_copy_of_the_model_stands_alone(qwen3):
    twin = copy.deepcopy(qwen3.model)
    before = own(qwen3.model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert qwen3.engine.generate(PROMPTS, GREEDY) == before


def test_weights_moved_by_others_are_found_at_refresh(qwen3):
    parameter = qwen3.model.model.layers[1].self_attn.k_proj.weight
    home = parameter.data
    parameter.data = home.clone()
    with pytest.raises(EngineError, match="model.layers.1.self_attn.k_proj.weight"):
        qwen3.engine.refresh()
    parameter.data = home
    qwen3.engine.refresh()


def test_vllm_understands_how_decoding_is_recorded_on_a_gpu():
    from vllm.config import CompilationConfig

    understood = CompilationConfig(mode=0, cudagraph_mode="FULL_DECODE_ONLY")
    assert not understood.mode and understood.cudagraph_mode.name == "FULL_DECODE_ONLY"


def test_log_probabilities_compile_nothing_where_the_model_is_not_compiled(qwen3):
    assert not qwen3.engine.llm.llm_engine.vllm_config.compilation_config.mode
    torch._dynamo.utils.counters.clear()
    qwen3.engine.generate(PROMPTS, replace(DRAWN, logprobs=2))
    assert not torch._dynamo.utils.counters["frames"]["ok"]
