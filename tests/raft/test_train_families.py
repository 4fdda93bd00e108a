"""Both methods on the families of the paper, a golden loss curve, LoRA, and precisions."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from raft.errors import ModelError
from raft.train.trainer import RAFTTrainer
from tests.golden.training import Recorder, config, exact, lines, load, rows, trainer

GOLDEN = Path(__file__).parents[1] / "golden" / "loss_curve.json"


# One family shows what the presets sdft and on_policy change.
CASES = [(f, m) for f in ("qwen3", "llama", "smollm3", "phi3") for m in ("raft", "sft")]


@pytest.mark.parametrize(
    ("family", "method"), [*CASES, ("llama", "sdft"), ("llama", "on_policy"), ("qwen3_moe", "raft")]
)
def test_every_method_learns_in_every_family(tmp_path, family, method):
    data = [{**row, "rewritten": row["answer"]} for row in rows(4)]
    made = trainer(
        tmp_path,
        family,
        data=data,
        method=method,
        num_train_epochs=4,
        per_device_train_batch_size=4,
        learning_rate=3e-3,
    )
    made.train()
    found = lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    assert found[-1]["loss_sft"] < found[0]["loss_sft"] - 0.3
    if method in ("sft", "sdft"):
        assert all(line["loss_kl"] is None and line["lambda"] is None for line in found) and not made.engine.calls
    elif method == "raft":
        assert all(line["loss_kl"] > 0 and line["lambda"] > 0 for line in found)
        assert found[0]["loss"] == pytest.approx(2 * found[0]["loss_sft"], rel=1e-5)
    else:
        # Student and teacher start out equal, L_KL at 0 and lambda at its bound.
        assert found[0]["loss_kl"] < 1e-4 and found[0]["lambda"] == 10.0
        assert found[-1]["loss_kl"] > found[0]["loss_kl"]


def test_golden_loss_curve(tmp_path):
    """Regenerate with `python -m tests.golden.regenerate` after a change that is meant to move it, and say why."""
    expected = json.loads(GOLDEN.read_text())
    trainer(tmp_path, **expected["settings"]).train()
    found = exact(tmp_path / "metrics.jsonl")
    for name in ("loss", "loss_sft", "loss_kl", "lambda", "grad_norm"):
        assert [line[name] for line in found] == pytest.approx([line[name] for line in expected["curve"]], rel=1e-4), (
            name
        )


def lora(target="q_proj"):
    model, tokenizer = load()
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=4, target_modules=[target], task_type="CAUSAL_LM")), tokenizer


def test_under_lora_the_teacher_is_the_model_without_its_adapters(tmp_path):
    frozen, _ = load()
    model, tokenizer = lora()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    runs = {}
    for name, teacher in (("own", None), ("other", frozen)):
        model.load_state_dict(start, strict=False)
        made = RAFTTrainer(
            model, config(tmp_path / name, max_steps=3, learning_rate=0.05, method="raft"), rows(), tokenizer,
            engine=Recorder(model, tokenizer), teacher=teacher,
        )  # fmt: skip
        assert made.teacher.shares_student == (teacher is None)
        made.train()
        runs[name] = exact(tmp_path / name / "metrics.jsonl")
    for own, other in zip(runs["own"], runs["other"], strict=True):
        assert own["loss_kl"] == pytest.approx(other["loss_kl"], rel=1e-4)
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, start[name])]
    assert changed and all("lora_" in name for name in changed)


def test_adapters_on_the_head_are_refused():
    with pytest.raises(ModelError, match="the output head is"):
        model, tokenizer = lora("lm_head")
        RAFTTrainer(model, config("out"), rows(), tokenizer)


def test_bf16_autocast_stays_near_fp32(tmp_path):
    for name in ("fp32", "bf16"):
        trainer(tmp_path / name, max_steps=2, bf16=name == "bf16").train()
    full, half = (lines(tmp_path / name / "metrics.jsonl")[0] for name in ("fp32", "bf16"))
    assert half["loss_sft"] == pytest.approx(full["loss_sft"], rel=0.01) and half["loss_sft"] != full["loss_sft"]
    assert half["loss_kl"] > 0


def test_gradient_checkpointing_changes_nothing(tmp_path):
    for name in ("plain", "checkpointed"):
        trainer(tmp_path / name, max_steps=2, gradient_checkpointing=name != "plain").train()
    plain, checkpointed = (exact(tmp_path / name / "metrics.jsonl") for name in ("plain", "checkpointed"))
    for a, b in zip(plain, checkpointed, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["grad_norm"] == pytest.approx(
            b["grad_norm"], rel=1e-4
        )


def test_a_model_by_its_path_and_an_engine_of_its_own(tmp_path):
    from tests.golden.training import checkpoint

    made = RAFTTrainer(str(checkpoint()), config(tmp_path / "a", rollout_engine="hf", max_steps=2), rows())
    made.train()
    assert made.engine is None  # it was the trainer's own, so it is closed
    trainer(tmp_path / "b", max_steps=2).train()
    assert exact(tmp_path / "a/metrics.jsonl") == exact(tmp_path / "b/metrics.jsonl")


def test_divergences_and_tail_reach_the_loss(tmp_path):
    losses = set()
    for i, settings in enumerate([{}, {"divergence": "reverse"}, {"divergence": "jsd"}, {"tail": "bucket"}]):
        trainer(tmp_path / str(i), max_steps=1, **settings).train()
        losses.add(round(lines(tmp_path / str(i) / "metrics.jsonl")[0]["loss_kl"], 6))
    assert len(losses) == 4
