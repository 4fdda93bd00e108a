"""Decoding with keys and values in place gives the tokens of transformers' own loop."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)
from transformers.cache_utils import StaticLayer

from raft.engines import Sampling
from raft.engines.decode import BY_HAND, EVERY, Recorder, can_decode, decode, sees_all
from raft.engines.hf import LEAST_AT_ONCE, HFEngine, bytes_of_request

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "bos_token_id": None,
    "pad_token_id": None,
}
PROMPTS = [[5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [42], [90, 3, 3, 3, 17]]


def model(kind=LlamaConfig, **fields):
    torch.manual_seed(0)
    built = AutoModelForCausalLM.from_config(kind(**SIZES, eos_token_id=7, **fields)).eval()
    for parameter in built.parameters():  # far from uniform, so that rounding decides nothing
        parameter.data *= 8
    return built


class Tokenizer:
    eos_token_id = 7


def both(built, max_model_len=64):
    """Engines of a model, with transformers' loop and with ours, which a CPU alone would not use."""
    return [HFEngine(built, Tokenizer(), max_model_len=max_model_len, recordable=ours) for ours in (False, True)]


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen3Config])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.0, max_tokens=40),
        Sampling(temperature=1.0, max_tokens=40, seed=3),
        Sampling(temperature=0.7, top_p=0.9, max_tokens=5),
        Sampling(temperature=1.0, max_tokens=1),
        Sampling(temperature=1.0, max_tokens=2, stop_token_ids=(1, 2, 3)),
    ],
)
def test_the_same_tokens(kind, sampling):
    built, in_place = model(kind), []
    theirs, ours = both(built)

    def look(module, arguments, given):
        in_place.append(any(isinstance(layer, StaticLayer) for layer in given["past_key_values"].layers))

    built.register_forward_pre_hook(look, with_kwargs=True)
    expected = theirs.generate(PROMPTS, sampling)
    assert not any(in_place)
    in_place.clear()
    assert ours.generate(PROMPTS, sampling) == expected
    assert all(in_place) and 0 < len(in_place) <= sampling.max_tokens


def test_seeds_belong_to_requests():
    (theirs, ours), seeds = both(model()), [9, 2, 9, 4]
    expected = theirs.generate(PROMPTS, Sampling(max_tokens=20), seeds=seeds)
    assert ours.generate(PROMPTS, Sampling(max_tokens=20), seeds=seeds) == expected
    assert ours.generate(PROMPTS[2:], Sampling(max_tokens=20), seeds=seeds[2:]) == expected[2:]


def test_under_autocast_as_in_training():
    """Where keys and values differ in precision."""
    built = model()
    plain = built.forward
    built.forward = lambda **given: torch.autocast("cpu", dtype=torch.bfloat16)(plain)(**given)
    theirs, ours = both(built)
    expected = theirs.generate(PROMPTS, Sampling(max_tokens=12))
    assert ours.generate(PROMPTS, Sampling(max_tokens=12)) == expected


def test_limits_of_rows_and_of_the_context():
    theirs, ours = both(model(), max_model_len=14)
    expected = theirs.generate(PROMPTS, Sampling(max_tokens=9))
    assert ours.generate(PROMPTS, Sampling(max_tokens=9)) == expected
    assert len(expected[1].token_ids) <= 3


def test_it_ends_where_all_have_ended():
    built = model()
    ids = torch.tensor([[5, 6], [7, 8]])
    calls = []

    def pick(scores, made):
        calls.append(int(made))
        return torch.tensor([7, 7])

    made = decode(built, ids, torch.ones_like(ids), 10 * EVERY, pick, [7])
    assert made.shape == (2, EVERY) and calls == list(range(EVERY))
    calls.clear()
    assert decode(built, ids, torch.ones_like(ids), EVERY + 3, pick, []).shape == (2, EVERY + 3)
    assert calls == list(range(EVERY + 3))


class Watched(Recorder):
    """On a CPU, with a look that takes the step and a recording that takes none."""

    def __init__(self, finds_waiting):
        self.finds_waiting, self.looks, self.recordings = finds_waiting, 0, 0

    def waits(self, step):
        self.looks += 1
        step()
        return self.finds_waiting

    def recorded(self, step):
        self.recordings += 1
        return step


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 2, 3, 4, 20])
def test_looking_and_recording_take_no_step_more(waits, max_tokens):
    ids = torch.tensor([[5, 6, 9]])
    given = model(), ids, torch.ones_like(ids), max_tokens, lambda scores, made: scores.argmax(-1), []
    expected = decode(*given)
    recorder = Watched(waits)
    assert decode(*given, recorder).tolist() == expected.tolist()
    looks = int(max_tokens > BY_HAND)
    assert (recorder.looks, recorder.recordings) == (looks, max_tokens > BY_HAND + 1 and not waits)
    decode(*given, recorder)
    assert recorder.looks == (looks if waits else 2 * looks)  # a model that waits is not looked at again


def test_padding_changes_nothing():
    """Whatever is in the padding, which every layer reads and masks."""
    built = model()
    seen = []

    def pick(scores, made):
        seen.append(scores.clone())
        return scores.argmax(-1)

    decode(built, torch.tensor([[5, 6, 9]]), torch.ones(1, 3, dtype=torch.int64), 4, pick, [])
    alone, seen[:] = list(seen), []
    ids, mask = torch.tensor([[96, 0, 5, 6, 9], [1, 2, 3, 4, 5]]), torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    decode(built, ids, mask, 4, pick, [])
    for scores, padded in zip(alone, seen, strict=True):
        torch.testing.assert_close(padded[:1], scores, atol=2e-4, rtol=2e-4)
        assert scores.isfinite().all() and padded.isfinite().all()


def test_not_on_a_cpu_and_not_where_a_layer_forgets():
    assert not can_decode(model())
    sdpa = {**SIZES, "attn_implementation": "sdpa"}
    assert sees_all(LlamaConfig(**sdpa))
    assert not sees_all(LlamaConfig(**SIZES, attn_implementation="eager"))
    assert not sees_all(Gemma2Config(**sdpa, sliding_window=8))
    assert not sees_all(MistralConfig(**sdpa, sliding_window=8))
    assert not sees_all(FalconConfig(hidden_size=64, num_attention_heads=4, alibi=True, attn_implementation="sdpa"))


def test_rows_that_run_on_beyond_the_context_do_no_harm():
    """Learned positions have no entry there."""
    torch.manual_seed(0)
    built = AutoModelForCausalLM.from_config(GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=97, n_positions=32))
    _, ours = both(built.eval(), max_model_len=32)
    found = ours.generate([[5] * 28, [6]], Sampling(max_tokens=30))
    assert [len(completion.token_ids) for completion in found] == [4, 30]


def test_requests_at_once_by_what_one_needs():
    """A quarter of a million tokens of keys and values in one, next to nothing in the other."""
    built, together = model(), []
    built.register_forward_pre_hook(lambda _, __, given: together.append(len(given["input_ids"])), with_kwargs=True)
    HFEngine(built, Tokenizer()).generate([[5]] * (LEAST_AT_ONCE + 1), Sampling(max_tokens=1))
    assert together == [LEAST_AT_ONCE, 1]  # a CPU
    small = bytes_of_request(built.config, 10, 10, 4)
    assert 20 * 3 * 2 * 2 * 16 * 4 < small < 100_000
    large = LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000)
    assert 2 * 32 * 4096 * 2000 * 2 < bytes_of_request(large, 1500, 500, 2) < 2 * 2 * 32 * 4096 * 2000 * 2


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_a_recorded_step(dtype, top_p, caplog):
    built = model().to("cuda", dtype)
    assert can_decode(built)
    theirs, _ = both(built)
    engine = HFEngine(built, Tokenizer(), max_model_len=64)
    sampling = Sampling(temperature=1.0, top_p=top_p, max_tokens=40, seed=3)
    with caplog.at_level("WARNING", logger="raft"):
        found = [engine.generate(PROMPTS, sampling)]
        for parameter in built.parameters():
            parameter.data *= 1.1
        found.append(engine.generate(PROMPTS, sampling))
    assert "without a recording" not in caplog.text
    assert found[1] == theirs.generate(PROMPTS, sampling) != found[0]


@pytest.mark.gpu
@needs_gpu
def test_a_step_that_waits_for_the_host_is_not_recorded(caplog):
    built = model().to("cuda")
    ids, stream = torch.tensor([[5, 6, 9]], device="cuda"), torch.cuda.current_stream()

    def pick(scores, made):
        return torch.full((1,), scores.argmax(-1).item(), device="cuda")

    expected = decode(built.cpu(), ids.cpu(), torch.ones_like(ids.cpu()), 12, lambda s, m: s.argmax(-1), [])
    with caplog.at_level("WARNING", logger="raft"):
        found = decode(built.to("cuda"), ids, torch.ones_like(ids), 12, pick, [])
    assert found.tolist() == expected.tolist() and "waits for the host" in caplog.text
    assert torch.cuda.current_stream() == stream and not can_decode(built)
