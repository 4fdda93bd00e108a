"""Settings: the documented defaults, and one line for every wrong one before any work."""

import ast
import importlib.util
import inspect
import itertools
from pathlib import Path

import pytest
from transformers import TrainingArguments

from raft.errors import ConfigError
from raft.methods import METHODS
from raft.train.config import RAFTConfig
from tests.golden.training import config, load, rows, trainer


def test_defaults_are_the_papers():
    args = RAFTConfig(output_dir="out", use_cpu=True)
    assert isinstance(args, TrainingArguments)
    assert (args.top_k, args.temperature, args.ema_beta) == (512, 1.5, 0.9)
    assert (args.num_train_epochs, args.per_device_train_batch_size, args.learning_rate, args.weight_decay) == (
        3,
        16,
        5e-6,
        0.01,
    )
    assert (args.rollout_temperature, args.rollout_max_tokens, args.rollouts_per_prompt, args.steps_per_refresh) == (
        1.0,
        512,
        1,
        1,
    )
    assert args.report_to == [] and args.logging_steps == 1 and args.max_grad_norm == 1.0 and args.bf16 is False
    assert args.lambda_bound is None and args.answer_target == "fused"


def test_presets_differ_in_what_they_say():
    assert list(METHODS) == ["fapm", "l2sp", "on_policy", "raft", "sdft", "sft"]
    assert RAFTConfig("out", method="sft").answer_target == "raw"
    assert RAFTConfig("out", method="sft", target="fused").answer_target == "fused"
    assert RAFTConfig("out", method="on_policy").lambda_bound == 10.0
    assert RAFTConfig("out", method="on_policy", lambda_max=2.0).lambda_bound == 2.0


def test_every_field_of_its_own_has_a_docstring():
    """Those that only change a default of transformers' are documented there."""
    body = ast.parse(inspect.getsource(RAFTConfig)).body[0].body
    documented = {
        statement.target.id
        for statement, after in itertools.pairwise(body)
        if isinstance(statement, ast.AnnAssign)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }
    own = set(RAFTConfig.__annotations__) - set(TrainingArguments.__dataclass_fields__)
    assert len(own) > 20 and own - documented == set()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "dpo"}, r"method: expected one of fapm, l2sp, on_policy, raft, sdft, sft, found 'dpo'"),
        ({"target": "best"}, r"target: expected one of fused, raw, rewritten or null, found 'best'"),
        ({"top_k": 0}, r"top_k: expected a whole number of at least 1, found 0"),
        ({"top_k": 2.5}, r"top_k: .* found 2.5"),
        ({"temperature": 0.0}, r"temperature: expected a number above 0, found 0.0"),
        ({"temperature": "hot"}, r"temperature: .* found 'hot'"),
        ({"ema_beta": 1.0}, r"ema_beta: expected a number of at least 0 and below 1, found 1.0"),
        ({"rollout_top_p": 1.5}, r"rollout_top_p: expected a number above 0 and at most 1, found 1.5"),
        ({"rollout_temperature": -1.0}, r"rollout_temperature: .* found -1.0"),
        ({"lambda_max": float("nan")}, r"lambda_max: .* found nan"),
        ({"lambda_min": 3.0, "lambda_max": 2.0}, r"lambda_min: expected at most lambda_max=2.0, found 3.0"),
        ({"lambda_min": 11.0, "method": "on_policy"}, r"lambda_min: expected at most lambda_max=10.0"),
        ({"fixed_lambda": 1.0, "lambda_max": 2.0}, r"fixed_lambda: expected no lambda_min or lambda_max"),
        ({"max_length": 512}, r"max_length: expected more than rollout_max_tokens=512, found 512"),
        ({"teacher_max_length": 100}, r"teacher_max_length: expected more than rollout_max_tokens=512, found 100"),
        ({"steps_per_refresh": 0}, r"steps_per_refresh: .* found 0"),
        ({"divergence": "js"}, r"divergence: expected one of forward, reverse, jsd, found 'js'"),
        ({"rollout_engine": "sglang"}, r"rollout_engine: .* found 'sglang'"),
        ({"remove_unused_columns": True}, r"remove_unused_columns: expected false"),
        ({"auto_find_batch_size": True}, r"auto_find_batch_size: expected false"),
        ({"label_smoothing_factor": 0.1}, r"label_smoothing_factor: expected 0, found 0.1"),
        ({"torch_compile": True}, r"torch_compile: expected false"),
        # What transformers refuses late, or takes:
        ({"learning_rate": -1e-4}, r"learning_rate: expected a number of at least 0, found -0.0001"),
        ({"learning_rate": float("nan")}, r"learning_rate: .* found nan"),
        ({"weight_decay": -0.1}, r"weight_decay: .* found -0.1"),
        ({"max_grad_norm": None}, r"max_grad_norm: .* found None"),
        ({"adam_beta2": 1.0}, r"adam_beta2: expected a number of at least 0 and below 1, found 1.0"),
        ({"per_device_train_batch_size": 0}, r"per_device_train_batch_size: .* at least 1, found 0"),
        ({"per_device_eval_batch_size": -8}, r"per_device_eval_batch_size: .* at least 1, found -8"),
        ({"gradient_accumulation_steps": 0}, r"gradient_accumulation_steps: .* at least 1, found 0"),
        ({"dataloader_num_workers": -1}, r"dataloader_num_workers: .* at least 0, found -1"),
        ({"seed": -1}, r"seed: expected a whole number from 0 to 4294967295, found -1"),
        ({"data_seed": 2**32}, r"data_seed: .* found 4294967296"),
        ({"num_train_epochs": 0}, r"num_train_epochs: expected a number above 0, found 0"),
        ({"num_train_epochs": -1.0}, r"num_train_epochs: .* found -1.0"),
        ({"max_steps": 0}, r"max_steps: expected a whole number of at least 1, found 0"),
        ({"logging_steps": -5}, r"logging_steps: expected a number of at least 0, found -5"),
        (
            {"train_sampling_strategy": "group_by_length"},
            r"train_sampling_strategy: expected one of random, sequential",
        ),
        ({"fp16": True}, r"fp16: expected false on a CPU"),
        ({"fsdp": True}, r"fsdp: expected none in a single process"),
        ({"save_strategy": "best"}, r"save_strategy: expected an eval_strategy other than no"),
        ({"save_strategy": "best", "eval_strategy": "epoch"}, r"metric_for_best_model: .* found None"),
        ({"report_to": "nowhere"}, r"report_to: .* found 'nowhere': nowhere is not supported"),
        ({"optim": "sgd", "optim_args": "momentum"}, r"optim: .* found 'sgd'"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, r"lr_scheduler_type: .* One of min_lr or min_lr_rate"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, r"lr_scheduler_type: .*num_decay_steps"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"pow": 2}}, r"lr_scheduler_type: .*'pow'"),
        ({"push_to_hub": True}, r"push_to_hub: expected false while HF_HUB_OFFLINE is set"),
    ],
)
def test_wrong_settings_end_in_one_line(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        RAFTConfig(output_dir="out", use_cpu=True, **settings)
    assert "\n" not in str(caught.value)


def test_values_that_transformers_takes_are_taken():
    from transformers.trainer_utils import SaveStrategy

    args = RAFTConfig(output_dir=Path("out"), use_cpu=True, save_strategy=SaveStrategy.NO, learning_rate=1, top_k=1e2)
    assert (args.save_strategy, args.learning_rate, args.top_k) == (SaveStrategy.NO, 1.0, 100)


@pytest.mark.parametrize(
    ("settings", "package"),
    [
        ({"report_to": "wandb"}, "wandb"),
        ({"report_to": ["tensorboard", "mlflow"]}, "mlflow"),
        ({"optim": "adamw_8bit"}, "bitsandbytes"),
        ({"optim": "galore_adamw", "optim_target_modules": ["attn"]}, "galore_torch"),
        ({"optim": "schedule_free_adamw"}, "schedulefree"),
    ],
)
def test_packages_that_are_not_installed_are_named(settings, package):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(ConfigError, match=rf"^{next(iter(settings))}: .*{package}") as caught:
        RAFTConfig(output_dir="out", use_cpu=True, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_steps": 3, "num_train_epochs": 0},
        {"optim": "adafactor", "lr_scheduler_type": "inverse_sqrt", "warmup_steps": 10},
        {"optim": "sgd", "optim_args": "momentum=0.9", "lr_scheduler_type": "constant"},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-7}, "warmup_steps": 0.1},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 5}},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"},
        {"learning_rate": 0.0, "max_grad_norm": 0.0, "report_to": "tensorboard", "save_strategy": "no"},
    ],
)
def test_settings_that_transformers_can_follow_are_taken(settings):
    import torch

    state = torch.get_rng_state()
    RAFTConfig(output_dir="out", use_cpu=True, **settings)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_push_to_the_hub_needs_a_token(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match="push_to_hub: expected a token for the Hub, found none; set HF_TOKEN"):
        RAFTConfig(output_dir="out", use_cpu=True, push_to_hub=True)
    assert RAFTConfig(output_dir="out", use_cpu=True, push_to_hub=True, hub_token="t").push_to_hub


def test_what_only_the_trainer_can_see(tmp_path):
    with pytest.raises(ConfigError, match=r"top_k: expected at most 936, the model's vocabulary, found 937"):
        trainer(tmp_path, top_k=937)
    model, tokenizer = load()
    from raft.train.trainer import RAFTTrainer

    with pytest.raises(ConfigError, match="compute_metrics: not supported"):
        RAFTTrainer(model, config(tmp_path), rows(), processing_class=tokenizer, compute_metrics=lambda p: {})
    with pytest.raises(ConfigError, match="args: expected a RAFTConfig, found TrainingArguments"):
        RAFTTrainer(model, TrainingArguments(str(tmp_path), use_cpu=True), rows(), processing_class=tokenizer)
    with pytest.raises(ConfigError, match="rollout_max_tokens: expected less than the model's 64 positions, found 64"):
        short, _ = load(max_position_embeddings=64)
        RAFTTrainer(short, config(tmp_path, rollout_max_tokens=64), rows(), processing_class=tokenizer)
    other, _ = load(vocab_size=900)
    with pytest.raises(ConfigError, match=r"teacher: expected the student's vocabulary of 936 tokens, found 900"):
        trainer(tmp_path, teacher=other)
