"""Settings: YAML and key=value in, one checked tree out; an error names the place and the nearest known name."""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from raft.errors import ConfigError
from raft.prompts import TEACHER_PROMPTS, WORDINGS
from raft.settings import (
    Config,
    EvalSettings,
    RefineSettings,
    load_config,
    save_config,
)
from raft.settings.check import check, field_hints
from raft.settings.schema import PromptWording
from raft.train.config import RAFTConfig, check_train, check_train_keys

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def error_of(call, *arguments, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def yaml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


def test_defaults_are_the_papers():
    config = load_config()
    assert config == Config()
    assert config.refine.tau == 0.8 and config.refine.accept_score == 0.8 and config.refine.rounds == 3
    assert config.train == {}


def test_the_file_then_the_overrides_the_last_one_winning(tmp_path):
    path = yaml(tmp_path, "model: m\nrefine:\n  tau: 0.5\n  rounds: 2\ntrain:\n  top_k: 64\n")
    config = load_config(path, ["refine.tau=0.6", "refine.tau=0.7", "train.method=sft", "seed=3"])
    assert (config.model, config.seed, config.refine.tau, config.refine.rounds) == ("m", 3, 0.7, 2)
    assert config.train == {"top_k": 64, "method": "sft"}


def test_names_without_a_dot_belong_to_the_command():
    config = load_config(None, ["tau=0.6", "model=m", "seed=1"], section="refine")
    assert (config.refine.tau, config.model, config.seed) == (0.6, "m", 1)
    assert load_config(None, ["learning_rate=1e-4"], section="train").train == {"learning_rate": 1e-4}
    assert load_config(None, ["batch_size=2"], section="evaluate").evaluate.batch_size == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-6", 5e-6),
        ("1e3", 1000.0),
        ("1E-3", 1e-3),
        (".5", 0.5),
        ("-2.", -2.0),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("null", None),
        ("7", 7),
        ("'7'", "7"),
        ("[1, a]", [1, "a"]),
        ("{a: 1}", {"a": 1}),
        ("2026-11-20", "2026-11-20"),
        ("a=b", "a=b"),
        ("1.2.3", "1.2.3"),
        ("", ""),
    ],
)
def test_values_are_what_people_mean(text, value):
    [found] = load_config(None, [f"train.x={text}"]).train.values()
    assert found == value and type(found) is type(value)


def test_text_settings_take_what_looks_like_a_number():
    assert load_config(None, ["model=7", "data=1e5", "run=2026"]) == Config(model="7", data="1e5", run="2026")
    assert load_config(None, ["model=null"]).model is None


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
)


@given(st.dictionaries(st.from_regex("[a-z_]{1,9}", fullmatch=True), st.one_of(VALUES, st.lists(VALUES, max_size=3))))
def test_saved_settings_read_back_the_same(tmp_path_factory, train):
    config = Config(model="no", data="5e-6", seed=5, refine=RefineSettings(tau=1, rounds=4), train=train)
    path = tmp_path_factory.mktemp("config") / "c.yaml"
    save_config(config, path)
    assert load_config(path) == config


@pytest.mark.parametrize(
    "value", ["no", "on", "y", "1:30", "2026-11-20", "5e-6", "0o7", "~", "=", "<<", "", 5e-6, 1e20]
)
def test_readers_of_yaml_1_1_read_the_same(tmp_path, value):
    save_config(Config(train={"x": value}), tmp_path / "c.yaml")
    reader = YAML(typ="safe", pure=True)
    reader.version = (1, 1)
    assert reader.load(tmp_path / "c.yaml")["train"] == {"x": value}


# What save_config of commit e272999 wrote, and that of the commit before this file's settings moved to raft.settings.
FIRST = """\
model: Qwen/Qwen3-0.6B
data: data/2026.jsonl
seed: 3
run: runs/law
refine:
  embedding_model: minilm
  tau: 0.75
  rounds: 2
  accept_score: 0.8
  rewrite_temperature: 0.7
  fuse_temperature: 0.7
  max_tokens: 512
  batch_size: 64
  engine: auto
  fusion_model: local
  max_model_len: 2048
train:
  method: raft
  learning_rate: 5.0e-06
  num_train_epochs: 3
  save_strategy: 'no'
  report_to: []
  lr_scheduler_type: cosine_with_min_lr
  lr_scheduler_kwargs:
    min_lr: 1.0e-07
  release_cache: true
  run_name: '2026-11-20'
  bf16: true
  lambda_max: null
  optim_target_modules:
  - q_proj
  - 'on'
evaluate:
  batch_size: 64
  max_tokens: 64
  engine: auto
  temperature: 0.0
  max_model_len: 2048
"""
LATER = FIRST.replace(
    "  rounds: 2\n", "  min_score: 0.8\n  max_new_words: 0.0\n  max_lost_words: 0.0\n  prompts: chat\n  rounds: 2\n"
)


def test_a_setting_may_have_its_earlier_name(tmp_path):
    assert load_config(yaml(tmp_path, "refine:\n  fusion_model: /models/large\n")).refine.fuser == "/models/large"


@pytest.mark.parametrize("text", [FIRST, LATER])
def test_settings_of_earlier_versions_load(tmp_path, text):
    config = load_config(yaml(tmp_path, text))
    assert (config.model, config.data, config.seed, config.run) == ("Qwen/Qwen3-0.6B", "data/2026.jsonl", 3, "runs/law")
    same = {"tau": 0.75, "rounds": 2, "rewrite_temperature": 0.7, "fuse_temperature": 0.7}
    assert config.refine == RefineSettings(**same) and config.evaluate == EvalSettings(max_tokens=64)
    assert check_train_keys(config.train) == {
        "method": "raft",
        "learning_rate": 5e-6,
        "num_train_epochs": 3.0,
        "save_strategy": "no",
        "report_to": [],
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": 1e-7},
        "release_cache": True,
        "run_name": "2026-11-20",
        "bf16": True,
        "lambda_max": None,
        "optim_target_modules": ["q_proj", "on"],
    }


def test_a_null_that_commit_e272999_took_is_refused_in_one_line(tmp_path):
    config = load_config(yaml(tmp_path, FIRST.replace("release_cache: true", "release_cache: null")))
    assert error_of(check_train, config) == "train.release_cache: expected true or false, found None"


@pytest.mark.parametrize("settings", [RefineSettings, EvalSettings, RAFTConfig])
def test_defaults_are_such_as_may_be_given(settings):
    for f in fields(settings):
        if f.init and f.default is not MISSING and f.name in settings.__annotations__:
            assert check(field_hints(settings)[f.name], f.default, f.name) == f.default


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("refine.tau=1.5", ["refine.tau", "from 0 to 1", "1.5"]),
        ("refine.tau=-0.1", ["refine.tau", "from 0 to 1", "-0.1"]),
        ("refine.tau=.nan", ["refine.tau", "nan"]),
        ("refine.tau=true", ["refine.tau", "a number", "True"]),
        ("refine.tau=high", ["refine.tau", "a number", "'high'"]),
        ("refine.tau=", ["refine.tau", "a number", "''"]),
        ("refine.min_score=1.1", ["refine.min_score", "from 0 to 1", "1.1"]),
        ("refine.max_new_words=-0.1", ["refine.max_new_words", "from 0 to 1", "-0.1"]),
        ("refine.prompts=plian", ["refine.prompts", "chat, plain", "'plian'"]),
        ("refine.rounds=0", ["refine.rounds", "at least 1", "0"]),
        ("refine.rounds=1.5", ["refine.rounds", "a whole number", "1.5"]),
        ("refine.accept_score=2", ["refine.accept_score", "2"]),
        ("refine.rewrite_temperature=-1", ["refine.rewrite_temperature", "at least 0", "-1"]),
        ("refine.batch_size=0", ["refine.batch_size", "0"]),
        ("refine.engine=cuda", ["refine.engine", "auto, vllm, hf", "'cuda'"]),
        ("refine.max_tokens=2048", ["refine.max_model_len", "refine.max_tokens", "2048"]),
        ("evaluate.temperature=-0.5", ["evaluate.temperature", "-0.5"]),
        ("seed=-1", ["seed", "-1"]),
        ("seed=x", ["seed", "a whole number", "'x'"]),
        ("model=[a]", ["model", "a text", "['a']"]),
        ("refine.tua=1", ["'refine.tua'", "did you mean 'refine.tau'"]),
        ("tau=1", ["'tau'", "did you mean 'refine.tau'"]),
        ("refin.tau=1", ["'refin.tau'", "did you mean 'refine.tau'"]),
        ("modell=x", ["'modell'", "did you mean 'model'"]),
        ("evaluate.max_token=1", ["did you mean 'evaluate.max_tokens'"]),
        ("refine=1", ["'refine'"]),
        ("train=1", ["'train'"]),
        ("qqqqqq=1", ["'qqqqqq'", "known are model, data"]),
        ("model", ["key=value", "'model'"]),
        ("=1", ["key=value", "'=1'"]),
        ("model=[a", ["model=[a", "not valid YAML"]),
    ],
)
def test_a_bad_override_is_named(setting, parts):
    message = error_of(load_config, None, [setting])
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("model: m\nrefine:\n  tau: 2\n", ["line 3", "refine.tau", "from 0 to 1", "2"]),
        ("model: m\nrefine:\n  rouns: 2\n", ["line 3", "'refine.rouns'", "did you mean 'refine.rounds'"]),
        ("model: m\nmodel: n\n", ["line 2", "'model' is there twice", "line 1"]),
        ("refine:\n  tau: 1\nrefine:\n  tau: 0\n", ["line 4", "'refine.tau' is there twice"]),
        ("model: [m\n", ["line 2", "not valid YAML"]),
        ("- model\n", ["line 1", "`name: value`"]),
        ("model\n", ["line 1", "`name: value`"]),
        ("refine: 3\n", ["line 1", "refine", "a mapping of settings", "3"]),
        ("train:\n  x: {a: 1, a: 2}\n", ["line 2", "not valid YAML", 'duplicate key "a"']),
        ("seed: *x\n", ["not valid YAML"]),
        ("seed: !!python/object:os.system {}\n", ["line 1", "not valid YAML"]),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, parts):
    path = yaml(tmp_path, text)
    message = error_of(load_config, path)
    for part in [str(path), *parts]:
        assert part in message


def test_files_that_hold_no_settings(tmp_path):
    assert "no such file" in error_of(load_config, tmp_path / "none.yaml")
    assert "is a directory" in error_of(load_config, tmp_path)
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in error_of(load_config, tmp_path / "c.yaml")
    assert load_config(yaml(tmp_path, "# nothing\nrefine:\n")) == Config()


def test_settings_made_in_python_are_checked_too():
    assert "refine.tau" in error_of(RefineSettings, tau=2)
    assert "evaluate.max_tokens" in error_of(EvalSettings, max_tokens=0)
    assert "seed" in error_of(Config, seed=1.5)


def test_settings_know_the_wordings_there_are():
    assert get_args(PromptWording) == tuple(sorted(WORDINGS))
    assert all(wording.name == name for name, wording in WORDINGS.items())
    for name in WORDINGS:
        assert load_config(None, [f"refine.prompts={name}"]).refine.prompts == name
    for name in TEACHER_PROMPTS:
        assert check_train(load_config(None, [f"teacher_prompt={name}"], section="train")).teacher_prompt == name


def test_every_setting_says_what_it_is():
    import ast
    import inspect
    import itertools

    for cls in (RefineSettings, EvalSettings, Config):
        body = ast.parse(inspect.getsource(cls)).body[0].body
        documented = {
            before.target.id
            for before, after in itertools.pairwise(body)
            if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value.value, str)
        }
        assert documented == {f.name for f in fields(cls)}


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("learning_rat=1", ["'train.learning_rat'", "did you mean 'train.learning_rate'"]),
        ("topk=5", ["did you mean 'train.top_k'"]),
        ("learning_rate=fast", ["train.learning_rate", "a number", "'fast'"]),
        ("num_train_epochs=true", ["train.num_train_epochs", "a number", "True"]),
        ("temperature=0", ["train.temperature", "above 0", "0"]),
        ("temperature=-1.5", ["train.temperature", "above 0", "-1.5"]),
        ("top_k=0", ["train.top_k", "at least 1", "0"]),
        ("ema_beta=1", ["train.ema_beta", "1"]),
        ("teacher_prompt=letter", ["train.teacher_prompt", "paper, chat", "'letter'"]),
        ("method=rafd", ["train.method", "raft", "'rafd'"]),
        ("eval_strategy=sometimes", ["train", "sometimes"]),
        ("eval_strategy=epoch", ["train.eval_strategy", "expected no", "no rows to evaluate on", "'epoch'"]),
        ("eval_on_start=true", ["train.eval_on_start", "expected false", "True"]),
        ("num_train_epochs=0", ["train.num_train_epochs", "above 0", "0"]),
        ("per_device_train_batch_size=0", ["train.per_device_train_batch_size", "at least 1"]),
        ("hub_token=secret", ["train.hub_token", "HF_TOKEN"]),
    ],
)
def test_a_bad_setting_of_the_training_is_named(setting, parts):
    message = error_of(check_train, load_config(None, [setting], section="train"))
    for part in parts:
        assert part in message
    assert "=secret" not in message


def test_the_training_gets_what_was_set(tmp_path):
    config = load_config(
        None, ["learning_rate=1", "top_k=1e2", "eval_strategy=no", "seed=4", f"run={tmp_path}"], section="train"
    )
    arguments = check_train(config)
    assert (arguments.learning_rate, arguments.top_k, arguments.seed, arguments.output_dir) == (
        1.0,
        100,
        4,
        str(tmp_path),
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_ready_settings_load(path):
    config = load_config(path)
    checked = check_train_keys(config.train)
    if path.stem != "demo":
        papers = {"top_k": 512, "temperature": 1.5, "ema_beta": 0.9, "num_train_epochs": 3.0, "learning_rate": 5e-6}
        papers |= {"per_device_train_batch_size": 16, "weight_decay": 0.01, "bf16": True}
        assert papers.items() <= checked.items() and config.refine.tau == 0.8


def test_there_are_ready_settings_for_each_backbone():
    assert {"smollm3_3b", "llama_3.2_3b_instruct", "phi_4_mini_instruct"} <= {path.stem for path in CONFIGS}
