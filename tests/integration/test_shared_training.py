"""The trainer with the real vLLM on its own weights: they stay shared through all that a training does to them."""

import copy
import os
import signal

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from raft.engines import HFEngine, Sampling, VLLMEngine
from raft.train.trainer import RAFTTrainer
from raft.train.watch import MOST_GAP
from tests.golden.training import config, exact, lines, load, rows
from tests.integration.test_trainer_processes import finish, start, wait_for, weights

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1200)]

GREEDY = Sampling(temperature=0, max_tokens=8)
PROMPTS = [[5, 6, 7], list(range(30, 60))]


class Follows(TrainerCallback):
    """After every step the engine gives the model's own tokens, from the model's own memory."""

    def __init__(self):
        self.checked = 0

    def on_step_end(self, args, state, control, model=None, **kwargs):
        engine, training = self.trainer.engine, model.training
        assert engine.weights.mode == "shared"
        if state.global_step == 2:  # as whoever averages weights, or goes back to better ones
            model.load_state_dict(copy.deepcopy(model.state_dict()))
            engine.refresh()
        if model.dtype == torch.float32:
            assert engine.generate(PROMPTS, GREEDY) == HFEngine(model, engine.tokenizer).generate(PROMPTS, GREEDY)
        [theirs] = engine.llm.apply_model(lambda served: {p.untyped_storage().data_ptr() for p in served.parameters()})
        assert {p.untyped_storage().data_ptr() for n, p in model.named_parameters() if ".lora_" not in n} <= theirs
        model.train(training)
        self.checked += 1


@pytest.mark.parametrize("kind", ["fp32", "bf16", "lora"])
def test_weights_stay_shared_through_a_training(tmp_path, kind):
    model, tokenizer = load(dtype=torch.bfloat16 if kind == "bf16" else torch.float32)
    if kind == "lora":
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    follows = Follows()
    args = config(
        tmp_path, max_steps=4, rollout_engine="vllm", engine_weights="shared", gradient_checkpointing=True,
        save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
        learning_rate=1e-2,
    )  # fmt: skip
    made = RAFTTrainer(
        model, args, rows(8), processing_class=tokenizer, callbacks=[follows], eval_dataset=rows(2),
    )  # fmt: skip
    follows.trainer = made
    made.train()
    assert follows.checked == 4
    gaps = [line["engine_gap"] for line in lines(tmp_path / "metrics.jsonl")]
    assert len(gaps) == 4 and max(gaps) < (MOST_GAP / 2 if kind == "bf16" else 1e-4)
    assert "engine_gap" not in [line["name"] for line in lines(tmp_path / "warnings.jsonl")]
    made.save_model(str(tmp_path / "saved"))
    if kind == "lora":
        saved = peft.PeftModel.from_pretrained(load()[0], tmp_path / "saved")
    else:
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=model.dtype)
    for (name, ours), theirs in zip(model.named_parameters(), saved.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_an_engine_that_does_not_follow_is_told_of(tmp_path, caplog):
    """vLLM on a copy of the model, to which no refresh brings what is learned."""
    model, tokenizer = load()
    engine = VLLMEngine(copy.deepcopy(model), tokenizer, max_model_len=192)
    try:
        args = config(tmp_path, max_steps=6, num_train_epochs=2, learning_rate=1e-2)
        RAFTTrainer(model, args, rows(8), processing_class=tokenizer, engine=engine).train()
    finally:
        engine.close()
    gaps = [line["engine_gap"] for line in lines(tmp_path / "metrics.jsonl")]
    assert gaps[0] < 1e-4 and min(gaps[1:]) > MOST_GAP  # before the first update they are the same
    (said,) = [line for line in lines(tmp_path / "warnings.jsonl") if line["name"] == "engine_gap"]
    assert said["step"] == 4 and said["text"] in caplog.text


def test_killed_while_sharing_a_run_resumes_exactly(tmp_path):
    settings = {
        "num_train_epochs": 8, "save_strategy": "steps", "save_steps": 4, "steps_per_refresh": 2,
        "rollout_engine": "vllm", "engine_weights": "shared",
    }  # fmt: skip
    whole = start(tmp_path / "whole", settings)
    killed = tmp_path / "killed"
    process = start(killed, settings)
    wait_for(process, killed / "metrics.jsonl", 7)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 7 <= (killed / "metrics.jsonl").read_text().count("\n") < 32
    finish(start(killed, settings, "resume"))
    finish(whole)
    assert exact(killed / "metrics.jsonl") == exact(tmp_path / "whole/metrics.jsonl")
    assert lines(killed / "rollouts.jsonl") == lines(tmp_path / "whole/rollouts.jsonl")
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(killed)[name]), name
