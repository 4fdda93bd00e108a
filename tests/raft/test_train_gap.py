"""Engine against trainer: the gap of log-probabilities, with an engine that generates with weights of its own."""

import json

import pytest
import torch

from raft.engines.base import Completion
from raft.engines.hf import HFEngine
from raft.runs import read_jsonl
from raft.train import watch
from raft.train.gap import drops, to_compare
from raft.train.rollout import COMPARED, Scored
from raft.train.trainer import RAFTTrainer
from tests.golden.training import config, exact, lines, load, rows


def told(model, prompt, token_ids):
    """log p of the model itself at temperature 1, by its own logits."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *token_ids]])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits.double(), -1).gather(-1, torch.tensor(token_ids)[:, None])[:, 0].tolist()


class Telling(HFEngine):
    """An engine whose model may be another one, and which tells its log-probabilities as vLLM does."""

    def __init__(self, model, tokenizer):
        super().__init__(model, tokenizer, max_model_len=192)
        self.calls = []

    def generate(self, prompts, sampling):
        found = super().generate(prompts, sampling)
        training = self._model.training
        self._model.eval()
        found = [
            Completion(
                c.token_ids, c.finish_reason, told(self._model, p, c.token_ids) if i < sampling.logprobs else None
            )
            for i, (p, c) in enumerate(zip(prompts, found, strict=True))
        ]
        self._model.train(training)
        self.calls.append((prompts, found))
        return found


def make(folder, engine_of=lambda model: model, change=lambda model: model, **settings):
    model, tokenizer = load()
    model = change(model)
    args = config(folder, log_rollouts=-1, **settings)
    return RAFTTrainer(model, args, rows(), processing_class=tokenizer, engine=Telling(engine_of(model), tokenizer))


def shifted(_):
    """Another model: every weight moved by a tenth of what weights are."""
    other, _ = load()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    return other


@pytest.mark.parametrize("settings", [{}, {"rollout_temperature": 0.7, "rollout_top_p": 0.9}])
def test_one_model_has_no_gap(tmp_path, settings):
    made = make(tmp_path, max_steps=4, gradient_accumulation_steps=2, **settings)
    made.train()
    written = lines(tmp_path / "metrics.jsonl")
    assert len(written) == 4 and all(0 <= line["engine_gap"] < 1e-4 for line in written)
    assert made.state.log_history[0]["engine_gap"] == written[0]["engine_gap"]
    assert "engine_gap" not in [line["name"] for line in read_jsonl(tmp_path / "warnings.jsonl")]


def test_the_gap_of_another_model_is_its_own_and_is_warned_of_once(tmp_path, caplog):
    made = make(tmp_path, shifted, max_steps=8, num_train_epochs=2, per_device_train_batch_size=3, learning_rate=0.0)
    made.train()
    written, student = lines(tmp_path / "metrics.jsonl"), made.model.eval()
    for line, (prompts, completions) in zip(written, made.engine.calls, strict=True):
        assert [c.logprobs is not None for c in completions] == [i < COMPARED for i in range(len(completions))]
        i = max(range(min(COMPARED, len(prompts))), key=lambda i: len(completions[i].token_ids))
        own = told(student, prompts[i], completions[i].token_ids)
        gaps = [abs(a - b) for a, b in zip(own, completions[i].logprobs, strict=True)]
        assert line["engine_gap"] == pytest.approx(sum(gaps) / len(gaps), rel=1e-3)
    assert min(line["engine_gap"] for line in written) > watch.MOST_GAP
    (said,) = [line for line in read_jsonl(tmp_path / "warnings.jsonl") if line["name"] == "engine_gap"]
    assert said["step"] == 3 and said["text"] in caplog.text and "rollout_engine: hf" in said["text"]


def test_it_is_one_number_a_refresh_and_of_the_weights_of_the_refresh(tmp_path):
    """By the second step of a refresh the weights have moved, far at this rate: only the first one can tell."""
    made = make(tmp_path, max_steps=4, steps_per_refresh=2, learning_rate=1e-2)
    made.train()
    written = lines(tmp_path / "metrics.jsonl")
    assert ["engine_gap" in line for line in written] == [True, False, True, False]
    assert all(line["engine_gap"] < 1e-4 for line in written[::2])


def test_it_stays_out_of_checkpoints(tmp_path):
    settings = {"max_steps": 4, "steps_per_refresh": 2, "save_strategy": "steps", "save_steps": 1}
    make(tmp_path, save_total_limit=None, **settings).train()
    whole = exact(tmp_path / "metrics.jsonl")
    stored = json.loads((tmp_path / "checkpoint-1/raft_state.json").read_text())["rollouts"]
    assert stored and all(set(c) == {"token_ids", "finish_reason"} for m in stored for r in m for c in r["rollouts"])
    made = make(tmp_path, **settings)
    made.train(resume_from_checkpoint=tmp_path / "checkpoint-1")  # in the middle of a refresh
    assert exact(tmp_path / "metrics.jsonl") == whole and len(made.engine.calls) == 1


def with_dropout(model):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, lora_dropout=0.5)
    return peft.get_peft_model(model, lora)


def test_dropout_is_no_gap(tmp_path):
    made = make(tmp_path, change=with_dropout, max_steps=2)
    assert drops(made.student.model) and not drops(load()[0])
    made.train()
    assert all(line["engine_gap"] < 1e-4 for line in lines(tmp_path / "metrics.jsonl"))


def test_dropout_of_the_attention_counts():
    model, _ = load(attention_dropout=0.1)
    assert drops(model)


def test_an_engine_that_tells_nothing_has_no_number(tmp_path):
    model, tokenizer = load()
    engine = HFEngine(model, tokenizer, max_model_len=192)
    RAFTTrainer(model, config(tmp_path, max_steps=1), rows(), processing_class=tokenizer, engine=engine).train()
    assert "engine_gap" not in lines(tmp_path / "metrics.jsonl")[0]


def test_the_longest_that_was_told_of_is_compared():
    drawn = [Completion([1], "stop", [-1.0]), Completion([1, 2], "stop", [-1.0, -2.0]), Completion([1, 2, 3], "stop")]
    scored = [Scored(None, completion) for completion in drawn]
    assert to_compare(scored) is scored[1]
    assert to_compare(scored[2:]) is None
