"""`raft config`: all settings, and a file that loads."""

import json
from dataclasses import asdict, fields

import pytest
from transformers import TrainingArguments

from raft.cli import main
from raft.settings import Config, load_config
from raft.settings.files import read_yaml
from raft.settings.listing import listing
from raft.settings.schema import SECTIONS
from raft.train.config import RAFTConfig, check_train

TOLD_BY_TRANSFORMERS = (
    *("per_device_train_batch_size", "learning_rate", "weight_decay", "logging_steps"),
    *("save_strategy", "save_total_limit", "remove_unused_columns"),
)


@pytest.fixture(scope="module")
def text():
    return listing(RAFTConfig)


def test_every_setting_is_listed_with_its_default(text, tmp_path):
    (tmp_path / "all.yaml").write_text(text)
    found = read_yaml(tmp_path / "all.yaml")
    plain = json.loads(json.dumps(asdict(Config())))  # with lists for tuples
    for name in SECTIONS:
        assert found[name] == plain[name]
    ours = RAFTConfig.__annotations__
    for f in fields(RAFTConfig):
        if f.init and f.name in ours:
            assert found["train"][f.name] == f.default, f.name
    theirs = {f.name for f in fields(TrainingArguments) if f.init} - set(ours) - {"seed", "output_dir", "hub_token"}
    assert {line.split(":")[0].removeprefix("  # ") for line in text.splitlines() if line.startswith("  # ")} >= theirs


def test_every_setting_of_ours_says_what_it_is_for(text):
    lines = text.splitlines()
    settings = [i for i, line in enumerate(lines) if line.strip() and not line.strip().startswith("#") and ": " in line]
    assert len(settings) > 60 and all(lines[i - 1].strip().startswith("# ") for i in settings)
    elsewhere = text.count("# As in transformers.TrainingArguments")
    assert elsewhere == sum(f in RAFTConfig.__annotations__ for f in TOLD_BY_TRANSFORMERS)
    assert any("from 0 to 1" in line for line in lines) and any("auto | vllm | hf" in line for line in lines)
    assert max(map(len, lines)) <= 120


def test_the_list_can_be_saved_and_loaded(text, tmp_path):
    path = tmp_path / "all.yaml"
    path.write_text(text)
    config = load_config(path)
    assert (config.refine, config.evaluate) == (Config().refine, Config().evaluate)
    config.run = str(tmp_path)
    config.train["rollout_engine"] = "hf"
    assert check_train(config).top_k == 512


def test_the_command_prints_it(capsys, text):
    assert main(["config"]) == 0
    assert capsys.readouterr().out == text
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "raft config" in capsys.readouterr().out
