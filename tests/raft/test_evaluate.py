"""evaluate(): what is asked, how outputs become scores; the distance of weights."""

import json

import pytest
import torch
from safetensors.torch import save_file

from raft.errors import InputError, ModelError
from raft.evaluate.evaluation import trained_items
from raft.evaluate.suites import check_items, summarize
from raft.merging.distance import weight_distance
from raft.rows import normalize_rows
from raft.runs import Run
from raft.settings import Config

ITEM = {"id": "a", "question": "Q?", "suite": "general", "skill": "copy", "check": {"kind": "upper"}}


def sample(suite, skill, value):
    return {
        "id": f"{suite}{skill}{value}", "suite": suite, "skill": skill, "question": "q", "output": "o",
        "finish_reason": "stop", "score": value,
    }  # fmt: skip


def test_summary_is_the_mean_of_items_per_suite_and_skill():
    samples = [
        sample("format", "upper", 1.0),
        sample("domain", None, 0.25),
        sample("general", "copy", 1.0),
        sample("general", "copy", 0.0),
        sample("general", "sort", 1.0),
        sample("extra", None, 0.5),
    ]
    result = summarize(samples)
    assert result["scores"] == {"domain": 0.25, "general": 2 / 3, "format": 1.0, "extra": 0.5}
    assert list(result["scores"]) == ["domain", "general", "format", "extra"]
    assert result["n"] == {"domain": 1, "general": 3, "format": 1, "extra": 1}
    assert result["by_skill"] == {"general": {"copy": 0.5, "sort": 1.0}, "format": {"upper": 1.0}}
    assert result["samples"] == samples
    json.dumps(result)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"question": None}, ["'prompt' (chat messages) or 'question'"]),
        ({"check": {"kind": "uper"}}, ['field "check"', "unknown kind 'uper'", "did you mean 'upper'?"]),
        ({"check": {}}, ["unknown kind None"]),
        ({"check": None}, ['field "answer"', "expected a text"]),
        ({"check": {"kind": "f1"}, "answer": " "}, ['field "answer"', "' '"]),
    ],
)
def test_items_are_checked_before_anything_is_generated(change, words):
    with pytest.raises(InputError) as error:
        check_items([ITEM, {**ITEM, "id": "bad", **change}], "d.jsonl")
    message = str(error.value)
    assert message.startswith("d.jsonl, item 'bad'") and "\n" not in message
    assert all(word in message for word in words), message


def test_no_items_is_an_error():
    with pytest.raises(InputError, match="no items"):
        check_items([])


def tensors(layer0=(3.0, 4.0), layer1=(1.0, 0.0), embedding=(2.0, 0.0)):
    return {
        "model.embed_tokens.weight": torch.tensor([embedding]),
        "model.layers.0.mlp.up_proj.weight": torch.tensor([[layer0[0]]]),
        "model.layers.0.mlp.down_proj.weight": torch.tensor([[layer0[1]]]),
        "model.layers.1.mlp.up_proj.weight": torch.tensor([layer1]),
        "model.norm.weight": torch.ones(2),
    }


def test_weight_distance_by_hand():
    moved = weight_distance(tensors(), tensors(layer0=(3.0, 4.5), layer1=(1.0, 0.3), embedding=(2.0, 0.2)))
    # layer 0: 0.5 / sqrt(3^2 + 4^2) = 0.1 over both tensors as one vector; layer 1: 0.3 / 1; embedding: 0.2 / 2
    assert moved["layers"] == {"0": pytest.approx(0.1), "1": pytest.approx(0.3)}
    assert moved["mean"] == pytest.approx(0.2)
    assert moved["embeddings"] == pytest.approx(0.1)
    # everything: sqrt(0.25 + 0.09 + 0.04) / sqrt(25 + 1 + 4 + 2)
    assert moved["total"] == pytest.approx((0.38 / 32) ** 0.5)
    assert weight_distance(tensors(), tensors()) == {
        "layers": {"0": 0.0, "1": 0.0}, "mean": 0.0, "embeddings": 0.0, "total": 0.0
    }  # fmt: skip


def test_weight_distance_reads_folders_shards_and_tied_heads(tmp_path):
    base, other = tensors(), tensors(layer0=(3.0, 4.5))
    (tmp_path / "base").mkdir()
    save_file(base, tmp_path / "base" / "model.safetensors")
    (tmp_path / "other").mkdir()
    names = sorted(other)
    for number, part in enumerate((names[:2], names[2:])):
        save_file({name: other[name] for name in part}, tmp_path / "other" / f"part-{number}.safetensors")
    index = {"weight_map": {name: f"part-{int(name in names[2:])}.safetensors" for name in names}}
    (tmp_path / "other" / "model.safetensors.index.json").write_text(json.dumps(index))
    expected = weight_distance(base, other)
    assert weight_distance(tmp_path / "base", str(tmp_path / "other")) == expected
    assert weight_distance(tmp_path / "base" / "model.safetensors", other) == expected
    tied = {**other, "lm_head.weight": other["model.embed_tokens.weight"]}
    assert weight_distance(tmp_path / "base", tied) == expected
    assert weight_distance({**base, "lm_head.weight": base["model.embed_tokens.weight"]}, tied) == expected


def test_weight_distance_sorts_layers_by_number():
    state = {f"h.{i}.w": torch.ones(1) for i in (0, 2, 10)}
    assert list(weight_distance(state, state)["layers"]) == ["0", "2", "10"]


def test_weight_distance_refuses_what_cannot_be_compared(tmp_path):
    base = tensors()
    shorter = {name: tensor for name, tensor in base.items() if "layers.1" not in name}
    with pytest.raises(ModelError, match=r"layers\.1\.mlp.up_proj.weight is only in the base"):
        weight_distance(base, shorter)
    with pytest.raises(ModelError, match=r"\(1, 2\) in the base, \(3,\) in the other"):
        weight_distance(base, {**base, "model.layers.1.mlp.up_proj.weight": torch.ones(3)})
    with pytest.raises(ModelError, match="expected weights in model.safetensors"):
        weight_distance(tmp_path, base)
    with pytest.raises(ModelError, match="no tensor name has a layer number"):
        weight_distance({"w": torch.ones(1)}, {"w": torch.ones(1)})


def test_items_that_were_trained_on_are_found_in_a_folder_of_datasets(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    rows = [{"question": "q", "answer": "a"}, {"question": "r", "answer": "b"}]
    datasets.Dataset.from_list(rows[:1]).save_to_disk(tmp_path / "saved")
    config = Config(data=str(tmp_path / "saved"))
    assert trained_items(Run(tmp_path), config, normalize_rows(rows), tmp_path / "test.jsonl") == ["0"]
