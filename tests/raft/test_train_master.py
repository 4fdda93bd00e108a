"""bf16 parameters do not lose small updates: the optimizer keeps fp32 masters, through checkpoints too."""

import pytest
import torch

from raft.train.master import keep_masters
from raft.train.trainer import RAFTTrainer
from tests.golden.training import config, exact, lines, load, rows, trainer


def descend(parameter, steps, masters):
    optimizer = torch.optim.AdamW([parameter], lr=1e-5, weight_decay=0.01)
    if masters:
        assert keep_masters(optimizer) == 1
    for _ in range(steps):
        (parameter.float() ** 2).sum().backward()
        optimizer.step()
        parameter.grad = None
    return parameter.detach().float()


def test_updates_too_small_for_bf16_add_up():
    start = torch.linspace(0.5, 2, 64)
    fp32, with_masters, without = (
        descend(torch.nn.Parameter(start.to(dtype, copy=True)), 400, masters)
        for dtype, masters in ((torch.float32, False), (torch.bfloat16, True), (torch.bfloat16, False))
    )
    assert torch.equal(without, start.bfloat16().float()), "the plain optimizer was meant to lose every update"
    # 400 steps of 1e-5: half of the distance between bf16 numbers near 1, so the best bf16 can do is rounding.
    rounded = fp32 - start + start.bfloat16().float()
    assert (with_masters - rounded).abs().max() <= 2**-8 and not torch.equal(with_masters, without)


def test_parameters_are_updated_in_place_and_others_left_alone():
    half, full = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16)), torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([half, full], lr=0.5)
    assert keep_masters(optimizer) == 1
    storage = half.data_ptr()
    (half.float().sum() + full.sum()).backward()
    optimizer.step()
    assert half.data_ptr() == storage and half.tolist() == full.tolist() == [0.5] * 4
    assert optimizer.param_groups[0]["params"][1] is full


def test_the_state_carries_the_masters():
    def made():
        parameter = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
        optimizer = torch.optim.AdamW([parameter], lr=1e-4)
        keep_masters(optimizer)
        return parameter, optimizer

    def step(parameter, optimizer):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    (a, first), (b, second) = made(), made()
    for _ in range(3):
        step(a, first)
    second.load_state_dict(first.state_dict())
    for parameter, optimizer in ((a, first), (b, second)):
        for _ in range(5):
            step(parameter, optimizer)
    assert torch.equal(a, b) and torch.equal(first.param_groups[0]["params"][0], second.param_groups[0]["params"][0])
    plain = torch.optim.AdamW([torch.nn.Parameter(torch.ones(8))], lr=1e-4)
    with pytest.raises(ValueError, match="no master_weights"):
        second.load_state_dict(plain.state_dict())


def test_a_bf16_model_trains_like_its_fp32_twin_and_resumes_exactly(tmp_path):
    settings = {"data": rows(4), "num_train_epochs": 2, "learning_rate": 2e-5, "per_device_train_batch_size": 4}
    half = trainer(tmp_path / "half", dtype=torch.bfloat16, save_strategy="steps", save_steps=1, **settings)
    half.train()
    masters = half.optimizer.param_groups[0]["params"]
    assert {m.dtype for m in masters} == {torch.float32} and {p.dtype for p in half.model.parameters()} == {
        torch.bfloat16
    }
    again = trainer(tmp_path / "half", dtype=torch.bfloat16, **settings)
    before = exact(tmp_path / "half/metrics.jsonl")
    again.train(resume_from_checkpoint=str(tmp_path / "half/checkpoint-1"))
    assert exact(tmp_path / "half/metrics.jsonl") == before
    for a, b in zip(half.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    full = trainer(tmp_path / "full", **settings)
    full.train()
    sft = [lines(tmp_path / name / "metrics.jsonl")[0]["loss_sft"] for name in ("half", "full")]
    assert sft[0] == pytest.approx(sft[1], rel=0.02)


def test_an_optimizer_that_is_given_keeps_masters_too(tmp_path):
    model, tokenizer = load(dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-6)
    args = config(tmp_path, method="sft", learning_rate=5e-6, max_steps=2)
    made = RAFTTrainer(model, args, rows(), processing_class=tokenizer, optimizers=(optimizer, None))
    made.train()
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(p.dtype == torch.float32 for p in held) and model.dtype == torch.bfloat16
