"""One packed forward equals separate ones, in every family, in values and gradients; and leaves the model as it was."""

from dataclasses import replace

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

from raft.errors import ModelError
from raft.models.language_model import LanguageModel
from raft.models.packing import NAME, pack, pack_turns
from raft.train.batching import Unit, units
from raft.train.losses import kl_per_rollout, student_batch
from tests.golden.training import load, trainer

SEQUENCES = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [20], [5, 6, 7, 30, 31], [40, 41, 42, 43, 44, 45, 46]]
WEIGHTS = torch.linspace(-1, 1, sum(map(len, SEQUENCES)))[:, None]


def gradients(model, hidden):
    model.zero_grad()
    (hidden * WEIGHTS).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def separate(language):
    decoder = language.inner.get_decoder()
    return torch.cat(
        [decoder(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0] for ids in SEQUENCES]
    )


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("qwen3", {}),
        ("llama", {}),
        ("smollm3", {}),
        ("phi3", {}),
        ("qwen3_moe", {}),
        ("phi3", {"sliding_window": 4}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    ],
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_equals_separate(family, overrides, attention):
    model, _ = load(family, **overrides)
    model.set_attn_implementation(attention)
    model.train()
    language = LanguageModel(model)
    language.check()
    assert language.uses_packed_sdpa
    expected = separate(language)
    theirs = gradients(model, expected)
    with language.attention():
        assert model.config._attn_implementation == (NAME if attention == "sdpa" else "eager")
        hidden = language.hidden(pack(SEQUENCES))
        ours = gradients(model, hidden)
    assert model.config._attn_implementation == attention
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=2e-5)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(
            gradient, theirs[name], rtol=1e-3, atol=2e-4, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_gradient_checkpointing_runs_the_same_attention_again():
    model, _ = load()
    language = LanguageModel(model)
    model.train()
    plain = checkpointed = None
    for enabled in (False, True):
        if enabled:
            model.gradient_checkpointing_enable()
        with language.attention():
            found = gradients(model, language.hidden(pack(SEQUENCES)))
        plain, checkpointed = (plain, found) if enabled else (found, None)
    for name, gradient in checkpointed.items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-5, atol=1e-6)


def test_generation_is_not_touched():
    model, _ = load()
    prompt = torch.tensor([[5, 6, 7]])
    before = model.generate(prompt, max_new_tokens=4, do_sample=False)
    with LanguageModel(model).attention():
        pass
    assert torch.equal(model.generate(prompt, max_new_tokens=4, do_sample=False), before)


SMALL = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64, "initializer_range": 0.3,
    "pad_token_id": 0,
}  # fmt: skip


def test_soft_caps_and_scales_of_the_logits_are_found():
    torch.manual_seed(0)
    gemma = Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=2.0, attn_implementation="eager"))
    granite = GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0))
    for model, scale, softcap in ((gemma, 1.0, 2.0), (granite, 0.25, None)):
        language = LanguageModel(model.eval())
        language.check()
        assert (language.head().scale, language.head().softcap) == (scale, softcap)


def test_a_model_whose_logits_are_made_otherwise_is_refused():
    model, _ = load()
    forward = model.forward

    def shifted(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * torch.arange(output.logits.shape[-1])
        return output

    model.forward = shifted
    with pytest.raises(ModelError, match="do not give the model's own logits"):
        LanguageModel(model).check()


def test_a_model_that_loses_the_pack_on_the_way_falls_back():
    """Its attention never sees the packing arguments: restarted positions must keep the sequences apart instead."""
    model, _ = load()
    for layer in model.model.layers:
        attention = layer.self_attn

        def forward(*args, own=attention.forward, packed_rows=None, packed_back=None, **kwargs):
            return own(*args, **kwargs)

        attention.forward = forward
    language = LanguageModel(model)
    language.check()
    assert not language.uses_packed_sdpa
    with torch.no_grad(), language.attention():
        torch.testing.assert_close(language.hidden(pack(SEQUENCES)), separate(language), rtol=1e-4, atol=2e-5)


def test_what_is_no_causal_language_model_is_refused():
    with pytest.raises(ModelError, match="Linear: expected a causal language model of transformers"):
        LanguageModel(torch.nn.Linear(2, 2))


TURNS = [([5, 6, 7], [8, 9, 10]), ([11], [12]), ([5, 6, 7], [13]), ([5, 6, 7], [14, 15, 16, 17, 18]), ([11], [])]


@pytest.mark.parametrize(
    ("family", "overrides"),
    [("qwen3", {}), ("llama", {}), ("smollm3", {}), ("phi3", {"sliding_window": 4})],
)
def test_turns_may_share_their_prompt(family, overrides):
    """One copy of each prompt gives what copies of its own give every turn, in values and gradients."""
    model, _ = load(family, **overrides)
    language = LanguageModel(model.train())
    assert language.shares_prompts
    found = {}
    with language.attention():
        for share in (False, True):
            packed, positions = pack_turns(TURNS, share=share)
            hidden = language.hidden(packed)[positions]
            assert len(hidden) == sum(len(completion) for _, completion in TURNS)
            model.zero_grad()
            (hidden * torch.linspace(-1, 1, len(hidden))[:, None]).sum().backward()
            found[share] = (
                packed.tokens,
                hidden,
                {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None},
            )
    assert (found[False][0], found[True][0]) == (3 + 2 + 1 + 3 + 3 + 4 + 1, 3 + 2 + 0 + 4 + 1)
    torch.testing.assert_close(found[True][1], found[False][1], rtol=1e-4, atol=2e-5)
    for name, gradient in found[True][2].items():
        torch.testing.assert_close(
            gradient, found[False][2][name], rtol=1e-3, atol=2e-4, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_only_an_attention_that_can_shares_prompts():
    model, _ = load()
    model.set_attn_implementation("eager")
    assert not LanguageModel(model).shares_prompts


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("family", ["qwen3", "llama", "smollm3", "phi3"])
def test_both_losses_of_a_pack_are_those_of_separate_forwards(family, share, tmp_path):
    """In fp32, to 1e-6."""
    made = trainer(tmp_path, family, per_device_train_batch_size=6, rollouts_per_prompt=2)
    micro = made.queue.take(iter([made.train_dataset[:6]]), 1, 0, 1, made.generation.generate)[0]
    rows = units(micro, shares=share)
    made.scoring.score([s for row in rows for s in row.scored], [], made.model_wrapped)
    with torch.no_grad(), made.student.attention():
        batch = student_batch(rows, share=share)
        found = made._losses(made.model, batch)
        sft, kl = found.sft, found.kl_per_rollout
        alone = []
        for row in rows:
            answer = student_batch([Unit(row.example)])
            assert answer.pack.tokens == len(row.example.prompt) + len(row.example.target) - 1
            alone.append(made._losses(made.model, answer).sft)
            for s in row.scored:
                pair = student_batch([Unit(row.example, (s,))])
                hidden = made.student.hidden(pack([[*row.example.prompt, *s.completion.token_ids[:-1]]]))
                here = replace(pair, kl_positions=torch.arange(len(row.example.prompt) - 1, len(hidden)))
                alone.append(kl_per_rollout(hidden, made.student.head(), here, made.args)[0])
    assert batch.pack.tokens == sum(row.tokens for row in rows)  # no padding
    torch.testing.assert_close(sft, torch.stack(alone[::3]).sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(kl.mean(), torch.stack([*alone[1::3], *alone[2::3]]).mean(), rtol=1e-6, atol=1e-6)
