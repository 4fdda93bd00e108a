"""Validation passes, signals, and what `raft train` makes of a run folder."""

import json
import os
import signal

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from raft.cli import plan_training
from raft.errors import ConfigError, InputError, Interrupted
from raft.rows import read_rows
from raft.runs import Run
from raft.settings import Config
from raft.train.interrupt import StopAtStepEnd
from raft.train.training import train, with_refinement
from raft.train.validation import ValidationCallback
from tests.golden.training import checkpoint, config, exact, lines, rows, trainer

SETTINGS = {"method": "sft", "data": rows(4), "num_train_epochs": 4}


class Passes:
    """Stands for the evaluation: scores that count the passes."""

    def __init__(self):
        self.seen = []

    def __call__(self, items, engine, sampling):
        self.seen.append((items, engine, sampling))
        return {"scores": {"domain": len(self.seen) / 10, "format": 1.0, "extra": 0.5}}


def validated(tmp_path, passes, resume=None, every=2, save=None):
    saving = {"save_strategy": "steps", "save_steps": save, "save_total_limit": None} if save else {}
    made = trainer(tmp_path, **SETTINGS, **saving)
    made.add_callback(ValidationCallback([{"id": "a"}], every, tmp_path / "validation.jsonl", passes, made.engine))
    made.train(resume_from_checkpoint=resume)
    return lines(tmp_path / "validation.jsonl")


def test_a_pass_before_training_and_after_every_second_epoch(tmp_path):
    passes = Passes()
    assert validated(tmp_path, passes) == [
        {"step": 0, "epoch": 0.0, "domain": 0.1, "format": 1.0},
        {"step": 4, "epoch": 2.0, "domain": 0.2, "format": 1.0},
        {"step": 8, "epoch": 4.0, "domain": 0.3, "format": 1.0},
    ]
    assert passes.seen[0][0] == [{"id": "a"}] and passes.seen[0][2].temperature == 0.0


@pytest.mark.parametrize(("step", "again"), [(3, [4, 8]), (4, [8]), (5, [8])])
def test_a_resumed_run_repeats_no_pass(tmp_path, step, again):
    before = validated(tmp_path, Passes(), save=step)
    passes = Passes()
    after = validated(tmp_path, passes, str(tmp_path / f"checkpoint-{step}"))
    assert [line["step"] for line in after] == [0, 4, 8]
    assert [line["domain"] for line in after if line["step"] in again] == [0.1 * (i + 1) for i in range(len(again))]
    assert after[: 3 - len(again)] == before[: 3 - len(again)]


def test_a_pass_that_the_kill_prevented_is_made_up_for(tmp_path):
    """Saved at the last step of an epoch, killed before its validation."""
    validated(tmp_path, Passes(), save=4)
    path = tmp_path / "validation.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines(path) if line["step"] < 4))
    assert [line["step"] for line in validated(tmp_path, Passes(), str(tmp_path / "checkpoint-4"))] == [0, 4, 8]


class SignalAt(TrainerCallback):
    def __init__(self, step, signum, times=1):
        self.step, self.signum, self.times = step, signum, times

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.signum)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_training_after_the_step_with_a_checkpoint(tmp_path, signum):
    whole = trainer(tmp_path / "whole", max_steps=4)
    whole.train()
    made = trainer(tmp_path / "run", max_steps=4, callbacks=[SignalAt(1, signum)])
    handler = signal.getsignal(signum)
    with pytest.raises(Interrupted) as caught, StopAtStepEnd() as stop:
        made.add_callback(stop)
        made.train()
    assert caught.value.exit_code == 128 + signum and signal.getsignal(signum) is handler
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    trainer(tmp_path / "run", max_steps=4).train(resume_from_checkpoint=True)
    assert exact(tmp_path / "run/metrics.jsonl") == exact(tmp_path / "whole/metrics.jsonl")


def test_a_second_signal_stops_at_once(tmp_path):
    made = trainer(tmp_path, max_steps=4, callbacks=[SignalAt(1, signal.SIGTERM, times=2)])
    with pytest.raises(Interrupted), StopAtStepEnd() as stop:
        made.add_callback(stop)
        made.train()
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1]


def run_config(tmp_path, **settings):
    data = tmp_path / "rows.jsonl"
    plain = [{k: v for k, v in row.items() if k != "fused_answer"} for row in rows(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in plain))
    own = ("use_cpu", "disable_tqdm", "max_length", "rollout_max_tokens", "top_k", "per_device_train_batch_size")
    base = config(tmp_path)
    chosen = {name: getattr(base, name) for name in own} | {"max_steps": 2, "rollout_engine": "hf"} | settings
    return Config(model=str(checkpoint()), data=str(data), seed=3, run=str(tmp_path / "run"), train=chosen)


def training_rows(settings, run, args):
    """As `raft train` reads them."""
    data = settings.data or str(run.refine_dir / "fused.jsonl")
    return with_refinement(read_rows(data), data, run, args)


def refined(run):
    run.refine_dir.mkdir(parents=True)
    with open(run.refine_dir / "fused.jsonl", "w") as file:
        file.writelines(
            json.dumps({**row, "rewritten": f"mine {row['id']}", "kept": True, "fused_answer": f"fused {row['id']}"})
            + "\n"
            for row in rows(4)
        )


@pytest.mark.parametrize("method", ["raft", "sft"])
def test_raft_train_fills_the_run_folder(tmp_path, method):
    run = Run(tmp_path / "run")
    refined(run)
    settings = run_config(tmp_path, method=method)
    train(plan_training(settings, run))
    assert len(lines(run.train_dir / "metrics.jsonl")) == 2
    AutoModelForCausalLM.from_pretrained(run.model_dir), AutoTokenizer.from_pretrained(run.model_dir)
    assert not (run.model_dir / "training_args.bin").exists()
    if method == "raft":
        assert "fused r" in lines(run.train_dir / "rollouts.jsonl")[0]["teacher_prompt"]
    before = exact(run.train_dir / "metrics.jsonl")
    train(plan_training(settings, run), resume=True)  # it was done already
    assert exact(run.train_dir / "metrics.jsonl") == before


def test_rows_meet_what_refinement_made_of_them(tmp_path):
    run = Run(tmp_path / "run")
    settings = run_config(tmp_path)
    assert "fused_answer" not in training_rows(settings, run, config(tmp_path))[0]
    refined(run)
    assert [row["fused_answer"] for row in training_rows(settings, run, config(tmp_path))] == [
        f"fused r{i}" for i in range(4)
    ]
    assert training_rows(settings, run, config(tmp_path, method="sdft"))[1]["rewritten"] == "mine r1"
    assert "fused_answer" not in training_rows(settings, run, config(tmp_path, method="sft"))[0]
    settings.data = None
    assert training_rows(settings, run, config(tmp_path))[0]["fused_answer"] == "fused r0"
    with pytest.raises(ConfigError, match="no data given: add --data"):
        plan_training(settings, Run(tmp_path / "other"))
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"id": "new", "question": "q", "answer": "a"}) + "\n")
    settings.data = str(more)
    with pytest.raises(InputError, match="has no line for row new"):
        training_rows(settings, run, config(tmp_path))


def test_no_model_no_training(tmp_path):
    with pytest.raises(ConfigError, match="no model given: add --model"):
        plan_training(Config(), Run(tmp_path))
