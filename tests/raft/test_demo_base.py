"""The packaged base model is what its record says, and the world around it is honest."""

import json
from statistics import mean

import pytest
import torch
from safetensors import safe_open

from raft.demo.formats import FORMATS
from raft.demo.settings import BASE_MODEL
from raft.demo.skills import SKILLS
from raft.demo.tokenizer import vocabulary
from raft.models import check_model, load_model, load_tokenizer
from studies.microworld.pretrain import MIXTURE, domain_scores, scores


@pytest.fixture(scope="module")
def base():
    return load_model(BASE_MODEL, dtype=torch.float32), load_tokenizer(BASE_MODEL)


@pytest.fixture(scope="module")
def measured(base):
    return scores(*base, per_skill=5, seed=2)


def test_it_is_small_and_complete(base):
    check_model(BASE_MODEL)
    assert sum(p.numel() for p in base[0].parameters()) <= 4_000_000
    assert sum(file.stat().st_size for file in BASE_MODEL.iterdir()) <= 10 * 2**20
    with safe_open(BASE_MODEL / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118  # not a dict


def test_its_tokenizer_is_the_worlds(base):
    ids = base[1].get_vocab()
    assert sorted(ids, key=ids.get) == vocabulary()


@pytest.mark.parametrize("suite", [list(SKILLS), list(FORMATS), ["reading"], ["rewriting"], ["fusing"]])
def test_it_can_do_what_it_was_taught(measured, suite):
    assert mean(measured[name] for name in suite) >= 0.9


def test_it_knows_no_domain(base):
    assert max(domain_scores(*base, seed=3, most=40).values()) <= 0.15


def test_its_record_is_complete():
    record = json.loads((BASE_MODEL / "training.json").read_text())
    assert record["mixture"] == MIXTURE and record["scores"].keys() == MIXTURE.keys()
    assert {"command", "seed", "hours", "parameters", "examples", "unknown_domains"} <= record.keys()
