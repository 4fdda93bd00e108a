"""What the trainer may be given besides the rows of its constructor."""

import copy

import pytest
import torch

from raft.engines.base import Completion
from raft.errors import ConfigError
from raft.train.inputs import check_data
from raft.train.parallel import check_fsdp
from raft.train.rollout import Scored
from raft.train.trainer import RAFTTrainer
from tests.golden.training import Recorder, config, load, rows, trainer


def test_rows_may_come_with_the_evaluation(tmp_path):
    made = trainer(tmp_path, method="sft", eval_dataset={"some": rows(4), "all": rows(8)})
    found = made.evaluate()
    assert made.evaluate(rows(4))["eval_loss"] == pytest.approx(found["eval_some_loss"], rel=1e-6)
    assert made.evaluate({"all": rows(8)})["eval_all_loss"] == pytest.approx(found["eval_all_loss"], rel=1e-6)
    assert made.predict(rows(4)).metrics["test_loss"] == pytest.approx(found["eval_some_loss"], rel=1e-6)


def test_a_teacher_that_is_the_student_is_refused(tmp_path):
    model, tokenizer = load()
    with pytest.raises(ConfigError, match="expected a model apart from the student"):
        RAFTTrainer(model, config(tmp_path), rows(), processing_class=tokenizer, teacher=model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_adapters_that_transformers_put_into_the_model_are_off_for_the_teacher(tmp_path):
    peft = pytest.importorskip("peft")
    model, tokenizer = load()
    plain = copy.deepcopy(model)
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    made = RAFTTrainer(
        model, config(tmp_path, max_steps=1), rows(), processing_class=tokenizer, engine=Recorder(model, tokenizer)
    )
    assert made.teacher.shares_student
    example = made.train_dataset[0]
    scored = [Scored(example, Completion([9, 10, 11], "length"))]
    top, _ = made.teacher.topk(scored, made.args, made.model)
    ids = torch.tensor([[*example.teacher_prompt, 9, 10]])
    with torch.no_grad():
        own, base = (m(input_ids=ids).logits[0, -3:].gather(1, top.indices) for m in (model, plain))
    torch.testing.assert_close(top.logits, base)
    assert (own - base).abs().max() > 0.01
    made.train()
    assert all(p.requires_grad for name, p in model.named_parameters() if ".lora_" in name)


def test_weights_of_an_engine_that_is_the_model_itself(tmp_path):
    with pytest.raises(ConfigError, match="engine_weights: expected auto beside rollout_engine='hf'"):
        config(tmp_path, rollout_engine="hf", engine_weights="copied")


def test_rows_that_the_settings_ask_for(tmp_path):
    for settings, asked in (
        ({"eval_strategy": "epoch"}, "eval_strategy='epoch'"),
        ({"eval_strategy": "steps", "eval_steps": 5}, "eval_strategy='steps'"),
        ({"eval_on_start": True}, "eval_on_start"),
    ):
        args = config(tmp_path, **settings)
        with pytest.raises(ConfigError, match=f"eval_dataset: expected rows to evaluate on beside {asked}, found none"):
            check_data(args, rows(4), None)
        check_data(args, rows(4), rows(2))
    args = config(tmp_path, dataloader_drop_last=True, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    with pytest.raises(ConfigError, match="dataloader_drop_last: .* the 4 rows of a batch, found 3 rows"):
        check_data(args, rows(3), None)
    check_data(args, rows(4), None)
    check_data(config(tmp_path, per_device_train_batch_size=4), rows(3), None)
    check_data(config(tmp_path), None, None)


def test_bf16_weights_that_fsdp_would_not_keep_in_full(tmp_path):
    model, _ = load(dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match="bf16: expected true beside FSDP"):
        check_fsdp(config(tmp_path, bf16=False), model)
    check_fsdp(config(tmp_path, bf16=True), model)
    check_fsdp(config(tmp_path, bf16=False), load()[0])
