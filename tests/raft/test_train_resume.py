"""A resumed run equals an uninterrupted one: bit for bit in weights and losses, line for line in its records."""

import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from raft.errors import RunFolderError
from raft.train.checkpoint import last_checkpoint
from raft.train.records import drop_after
from raft.train.trainer import RAFTTrainer
from tests.golden.training import Recorder, config, exact, lines, load, rows, trainer
from tests.tiny import CHAT_TEMPLATE


class Killed(Exception):
    pass


class KillAfter(TrainerCallback):
    """Ends the process's work after a step, its records written and nothing saved since the last checkpoint."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step > self.step:
            raise Killed


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder of two steps with a checkpoint each."""
    folder = tmp_path_factory.mktemp("checkpoints")
    trainer(folder, max_steps=2, save_strategy="steps", save_steps=1).train()
    return folder


@pytest.mark.parametrize(
    ("overrides", "step"),
    [
        ({}, 3),  # at an epoch's end
        ({"steps_per_refresh": 3, "rollouts_per_prompt": 2}, 4),  # in the middle of what one refresh feeds
        ({"num_train_epochs": 3, "gradient_accumulation_steps": 2, "logging_steps": 2}, 3),  # and of a logged line
        ({"method": "sft", "num_train_epochs": 3}, 5),
        ({"balance": "gradient", "num_train_epochs": 3, "gradient_accumulation_steps": 2, "logging_steps": 2}, 3),
        ({"log_gradient_parts": 3, "logging_steps": 5}, 4),  # measured in the part of a line before the checkpoint
    ],
)
def test_resume_is_exact(tmp_path, overrides, step):
    overrides = {"data": rows(5), "num_train_epochs": 2, **overrides}
    whole = trainer(tmp_path / "whole", **overrides)
    whole.train()
    folder = tmp_path / "resumed"
    saving = {"save_strategy": "steps", "save_steps": step}
    with pytest.raises(Killed):
        trainer(folder, **overrides, **saving, callbacks=[KillAfter(step + 1)]).train()
    resumed = trainer(folder, **overrides, **saving)
    resumed.train(resume_from_checkpoint=True)
    assert exact(folder / "metrics.jsonl") == exact(tmp_path / "whole/metrics.jsonl")
    assert lines(folder / "rollouts.jsonl") == lines(tmp_path / "whole/rollouts.jsonl")
    assert resumed.balance.state_dict() == whole.balance.state_dict()
    for (name, a), b in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_checkpoint_that_a_kill_cut_short_is_passed_over(tmp_path):
    trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=1, save_total_limit=None).train()
    assert last_checkpoint(tmp_path).endswith("checkpoint-4")
    state = json.loads((tmp_path / "checkpoint-4/raft_state.json").read_text())
    assert state["balance"]["steps"] == 4 and state["balance"]["sft"] > 0 and state["rollouts"] == []
    (tmp_path / "checkpoint-4/trainer_state.json").unlink()
    state = tmp_path / "checkpoint-3/trainer_state.json"
    state.write_text(state.read_text()[:40])
    (tmp_path / "checkpoint-2/raft_state.json").unlink()
    assert last_checkpoint(tmp_path).endswith("checkpoint-1")
    assert last_checkpoint(tmp_path / "none") is None


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("model.safetensors", cut, "model.safetensors has .* bytes, expected"),
        ("model.safetensors", zero, "model.safetensors has other content"),
        ("model.safetensors", Path.unlink, "model.safetensors is missing"),
        ("optimizer.pt", cut, "optimizer.pt has .* bytes, expected"),
        ("optimizer.pt", zero, "optimizer.pt has other content"),
        ("optimizer.pt", Path.unlink, "optimizer.pt is missing"),
        ("scheduler.pt", Path.unlink, "scheduler.pt is missing"),
        ("rng_state.pth", Path.unlink, "rng_state.pth is missing"),
        ("trainer_state.json", zero, "trainer_state.json has other content"),
        ("raft_state.json", zero, "raft_state.json has other content"),
        ("raft_files.json", zero, "raft_files.json is not readable"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_named(checkpoints, tmp_path, caplog, name, damage, reason):
    folder = shutil.copytree(checkpoints, tmp_path / "copy")
    damage(folder / "checkpoint-2" / name)
    with caplog.at_level(logging.WARNING, "raft"):
        assert last_checkpoint(folder) == str(folder / "checkpoint-1")
    (line,) = caplog.messages
    assert re.search(f"checkpoint-2 is damaged: {reason}.*; going on from checkpoint-1", line)


@pytest.mark.parametrize("part", ["optimizer", "scheduler"])
def test_without_its_optimizer_s_state_no_checkpoint_is_gone_on_from(checkpoints, tmp_path, part):
    """Not one of an earlier version either, and not one that is given by its path."""
    folder = shutil.copytree(checkpoints, tmp_path / "copy")
    (folder / "checkpoint-2/raft_files.json").unlink()
    assert last_checkpoint(folder) == str(folder / "checkpoint-2")
    (folder / f"checkpoint-2/{part}.pt").unlink()
    assert last_checkpoint(folder) == str(folder / "checkpoint-1")
    with pytest.raises(RunFolderError, match=f"checkpoint-2: is damaged: the state of the {part} is missing"):
        trainer(folder, max_steps=3).train(resume_from_checkpoint=folder / "checkpoint-2")


def test_a_training_past_a_damaged_checkpoint_equals_an_uninterrupted_one(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints, tmp_path / "copy")
    zero(folder / "checkpoint-2/optimizer.pt")
    resumed = trainer(folder, max_steps=2)
    resumed.train(resume_from_checkpoint=True)
    assert exact(folder / "metrics.jsonl") == exact(checkpoints / "metrics.jsonl")
    expected = load_file(checkpoints / "checkpoint-2/model.safetensors")
    assert all(torch.equal(p, expected[name]) for name, p in resumed.model.named_parameters() if name in expected)


def test_nothing_to_resume_is_said(tmp_path):
    with pytest.raises(RunFolderError, match="no whole checkpoint to resume from"):
        trainer(tmp_path).train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(RunFolderError, match="expected raft_state.json"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    (tmp_path / "checkpoint-1/raft_files.json").unlink()  # which earlier versions did not write
    path = tmp_path / "checkpoint-1/raft_state.json"
    state = json.loads(path.read_text())
    del state["window"]["seconds"]
    path.write_text(json.dumps(state))
    with pytest.raises(RunFolderError, match="checkpoint-1: written by another version"):
        trainer(tmp_path, max_steps=2).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("other", [False, True])
def test_a_resumed_training_says_that_its_rows_are_rendered_otherwise(checkpoints, tmp_path, caplog, other):
    """As under a template that writes today's date."""
    folder = shutil.copytree(checkpoints, tmp_path / "copy")
    model, tokenizer = load()
    if other:
        tokenizer.chat_template = f"{{{{ 'It is Friday.' }}}}{CHAT_TEMPLATE}"
    engine = Recorder(model, tokenizer)
    made = RAFTTrainer(model, config(folder, max_steps=3), rows(), processing_class=tokenizer, engine=engine)
    with caplog.at_level(logging.WARNING, "raft"):
        made.train(resume_from_checkpoint=True)
    assert any("are rendered to other tokens" in message for message in caplog.messages) == other


def test_a_fresh_run_starts_fresh(tmp_path):
    trainer(tmp_path, max_steps=2).train()
    before = exact(tmp_path / "metrics.jsonl")
    trainer(tmp_path, max_steps=2).train()
    assert exact(tmp_path / "metrics.jsonl") == before


def test_lines_of_later_steps_and_a_torn_one_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 3, 3, 4)) + '{"step": 5, "lo')
    drop_after(path, 3)
    assert [line["step"] for line in lines(path)] == [1, 2, 3, 3]
    drop_after(path, 9)
    drop_after(tmp_path / "none.jsonl", 1)
    assert [line["step"] for line in lines(path)] == [1, 2, 3, 3]


def test_a_checkpoint_may_be_named_by_a_path(tmp_path):
    trainer(tmp_path, num_train_epochs=2, save_strategy="epoch").train()
    made = trainer(tmp_path, num_train_epochs=2, save_strategy="epoch")
    made.train(resume_from_checkpoint=tmp_path / "checkpoint-4")
    assert made.engine.calls, "the last one would have left nothing to train"
