"""Models on disk that cannot be used, saved again or trained: one line, before any work."""

import json
import os

import pytest
import torch
from transformers import AutoModelForCausalLM

from raft.errors import ModelError
from raft.models import check_model, load_model
from raft.models.language_model import LanguageModel, check_architecture
from raft.train.saving import check_saves
from tests.golden.training import load
from tests.tiny import build

LLAMA4 = {"model_type": "llama4_text", "num_local_experts": 2, "intermediate_size_mlp": 64, "head_dim": 32}


def error_of(call, *arguments) -> str:
    with pytest.raises(ModelError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- paths ----


def test_a_slip_in_a_path_is_not_asked_of_the_hub(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for path in ("runs/model", "runs/x/model", "elsewhere/x/model", "./model", "../model", "~/modle", "runs/model/"):
        assert "no such folder" in error_of(check_model, path)
    assert "no such folder in runs" in error_of(check_model, "runs/model")
    assert check_model("someone/model") == "someone/model"
    assert check_model("model") == "model"


def test_a_model_in_the_cache_of_the_hub_is_known_by_its_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone").mkdir()
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: f"/cache/{name}/{file}")
    assert check_model("someone/model") == "someone/model"


def test_paths_that_the_system_refuses(monkeypatch, tmp_path):
    assert "File name too long" in error_of(check_model, "m" * 300)
    assert "home directory" in error_of(check_model, "~no-such-user/model")
    path = build("qwen3", tmp_path / "model")
    readable = open
    for number in (5, 13, 28, 30):  # input/output, permission, full disk, read-only

        def refuse(file, *arguments, number=number, **options):
            if str(file).endswith(".safetensors"):
                raise OSError(number, os.strerror(number), str(file))
            return readable(file, *arguments, **options)

        monkeypatch.setattr("builtins.open", refuse)
        assert os.strerror(number) in error_of(check_model, path)


# ---- what can be loaded and not saved ----


def generation(path, **fields):
    file = path / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return path


def test_flags_of_sampling_without_do_sample_are_mended(tmp_path):
    path = generation(build("llama", tmp_path / "model"), temperature=0.9, top_p=0.6)  # as Llama-2-chat had it
    model = load_model(path)
    assert model.generation_config.do_sample is True
    assert (model.generation_config.temperature, model.generation_config.top_p) == (0.9, 0.6)
    model.save_pretrained(tmp_path / "saved")
    greedy = load_model(generation(path, do_sample=False))
    assert not greedy.generation_config.do_sample and greedy.generation_config.temperature is None
    greedy.save_pretrained(tmp_path / "saved")
    assert "top_p" not in json.loads((tmp_path / "saved" / "generation_config.json").read_text())


def test_a_generation_configuration_that_could_not_be_saved_is_refused(tmp_path):
    path = generation(build("llama", tmp_path / "model"), pad_token_id=-1, temperature=0.9)
    message = error_of(load_model, path)
    assert str(path) in message and "generation_config.json" in message and "`pad_token_id`" in message
    assert "temperature" not in message  # that would have been mended


def test_a_save_is_tried_before_it_is_needed():
    peft = pytest.importorskip("peft")
    model, tokenizer = load()
    check_saves(model, tokenizer)
    check_saves(peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])), tokenizer)
    model.generation_config.temperature = 0.5
    assert "generation_config.json cannot be saved" in error_of(check_saves, model, tokenizer)
    model, _ = load()
    model.config.odd = object()
    assert "config.json cannot be saved" in error_of(check_saves, model, tokenizer)
    tokenizer.init_kwargs["odd"] = object()
    assert "tokenizer cannot be saved" in error_of(check_saves, load()[0], tokenizer)


# ---- architectures ----


def test_a_decoder_that_transformers_does_not_find_is_known_from_config_json(monkeypatch, tmp_path):
    path = build("llama", tmp_path / "model", **LLAMA4)
    model = AutoModelForCausalLM.from_pretrained(path)
    assert "Llama4ForCausalLM: transformers' get_decoder finds no decoder" in error_of(LanguageModel, model)

    def read(*arguments, **options):
        raise AssertionError("weights were read")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", read)
    message = error_of(check_architecture, path)
    assert message.startswith(f"{path}: Llama4ForCausalLM: ")
    state = torch.get_rng_state()
    for family in ("qwen3", "smollm3", "phi3", "qwen3_moe"):
        check_architecture(build(family, tmp_path / family))
    assert torch.equal(torch.get_rng_state(), state)
    (path / "config.json").write_text('{"model_type": "t5"}')
    assert "no causal language model" in error_of(check_architecture, path)


def test_a_decoder_that_does_not_take_packs():
    class Other(torch.nn.Module):
        def forward(self, input_ids):
            return input_ids

    model, _ = load()
    model.get_decoder = lambda: Other()
    message = error_of(LanguageModel(model).check)
    assert "does not take packed sequences" in message and "TypeError" in message
