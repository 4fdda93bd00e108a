"""Merged checkpoints equal their formulas, are read and written in pieces, and refuse what does not fit."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from raft.cli import main
from raft.errors import ConfigError, ModelError
from raft.merging import MERGES, make_merge, merge, merge_in_place
from raft.merging.fapm import pruned
from raft.merging.tensors import depths, write_tensors
from raft.models.load import INDEX
from tests.golden.training import checkpoint


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base model and two tuned ones: its weights with noise."""
    top = tmp_path_factory.mktemp("models")
    base = top / "base"
    shutil.copytree(checkpoint(), base)
    for seed in (1, 2):
        model = AutoModelForCausalLM.from_pretrained(base)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
        model.save_pretrained(top / f"tuned{seed}")
        AutoTokenizer.from_pretrained(base).save_pretrained(top / f"tuned{seed}")
    return top


def weights(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def test_wise_ft_is_a_line_between_both(folders, tmp_path):
    merge(make_merge("wise_ft", {"alpha": 0.25}), folders / "base", [folders / "tuned1"], tmp_path / "out")
    base, tuned, out = weights(folders / "base"), weights(folders / "tuned1"), weights(tmp_path / "out")
    assert out.keys() == tuned.keys()
    for name, tensor in out.items():
        torch.testing.assert_close(tensor, 0.75 * base[name] + 0.25 * tuned[name])
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    AutoTokenizer.from_pretrained(tmp_path / "out")
    made = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert (made["merge"], made["options"]) == ("wise_ft", {"alpha": 0.25})


@pytest.mark.parametrize(("alpha", "like"), [(0.0, "base"), (1.0, "tuned1")])
def test_the_ends_of_wise_ft_are_its_models_to_the_bit(folders, tmp_path, alpha, like):
    merge(make_merge("wise_ft", {"alpha": alpha}), folders / "base", [folders / "tuned1"], tmp_path / "out")
    expected = weights(folders / like)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "out").items())


def test_lines_keeps_more_of_deeper_layers(folders, tmp_path):
    merge(make_merge("lines", {"alpha": 0.2}), folders / "base", [folders / "tuned1"], tmp_path / "out")
    base, tuned, out = weights(folders / "base"), weights(folders / "tuned1"), weights(tmp_path / "out")
    last = max(int(name.split(".")[2]) for name in out if name.startswith("model.layers."))
    for name, tensor in out.items():
        depth = (
            int(name.split(".")[2]) / last if name.startswith("model.layers.") else float(name == "model.norm.weight")
        )
        share = 0.2 + 0.8 * depth
        torch.testing.assert_close(tensor, base[name] + share * (tuned[name] - base[name]))
    assert last >= 1


def test_depths_of_other_names():
    names = [
        "transformer.wte.weight",
        "transformer.h.0.ln_1.weight",
        "transformer.h.2.attn.weight",
        "transformer.ln_f.bias",
    ]
    assert depths([*names, "transformer.h.1.x"]) == dict(
        zip([*names, "transformer.h.1.x"], [0, 0, 1, 1, 0.5], strict=True)
    )
    with pytest.raises(ModelError, match="depths are not known"):
        depths(["a", "b"])


def test_soup_is_the_mean_and_needs_no_base(folders, tmp_path):
    merge(make_merge("soup", {}), None, [folders / "tuned1", folders / "tuned2"], tmp_path / "out")
    one, two = weights(folders / "tuned1"), weights(folders / "tuned2")
    for name, tensor in weights(tmp_path / "out").items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2)


def test_fapm_on_disk_is_fapm_in_memory(folders, tmp_path):
    merge(make_merge("fapm", {"sparsity": 0.8}), folders / "base", [folders / "tuned1"], tmp_path / "out")
    base, tuned = weights(folders / "base"), weights(folders / "tuned1")
    for name, tensor in weights(tmp_path / "out").items():
        assert torch.equal(tensor, pruned(tuned[name], base[name], 0.8))


def test_rounding_to_another_precision_is_no_change_to_fapm():
    base = torch.randn(64, 64)
    tuned = base.bfloat16()
    tuned[0] += 1
    found = pruned(tuned, base, 0.9)
    assert found.dtype == torch.bfloat16 and torch.equal(found, pruned(tuned, base.bfloat16(), 0.9))
    assert not torch.equal(found, base.bfloat16())


def test_damaged_models_are_refused_in_one_line_and_nothing_is_left(folders, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(folders / "tuned1", cut)
    whole = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="no whole safetensors file") as caught:
        merge(make_merge("wise_ft", {}), folders / "base", [cut], tmp_path / "out")
    assert "\n" not in str(caught.value) and sorted(path.name for path in tmp_path.iterdir()) == ["cut"]


def test_another_depth_is_another_architecture_whichever_side_has_more(folders, tmp_path):
    less = tmp_path / "less"
    shutil.copytree(folders / "tuned1", less)
    tensors = load_file(less / "model.safetensors")
    last = max(name.split(".")[2] for name in tensors if name.startswith("model.layers."))
    save_file({n: t for n, t in tensors.items() if f".layers.{last}." not in n}, less / "model.safetensors")
    for models in ([folders / "tuned2", less], [less, folders / "tuned2"]):
        with pytest.raises(ModelError, match="another architecture"):
            merge(make_merge("soup", {}), None, models, tmp_path / "out")
        assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()


def test_a_model_saved_again_over_shards_is_read_as_it_is_now(folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders / "tuned1", folder)
    write_tensors(load_file(folder / "model.safetensors").items(), folder, shard_bytes=20_000)
    merge_in_place(make_merge("wise_ft", {"alpha": 0.0}), folders / "base", folder)
    again = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in weights(folders / "base").items())


def test_several_shards_are_read_and_written(folders, tmp_path):
    sharded = tmp_path / "sharded"
    shutil.copytree(folders / "tuned1", sharded)
    tensors = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    write_tensors(tensors.items(), sharded, shard_bytes=20_000)
    index = json.loads((sharded / INDEX).read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2 and all((sharded / name).is_file() for name in files)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    again = AutoModelForCausalLM.from_pretrained(sharded).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    merge_in_place(make_merge("wise_ft", {"alpha": 1.0}), folders / "base", sharded)
    assert not (sharded / INDEX).exists() and sorted(sharded.glob("*.safetensors")) == [sharded / "model.safetensors"]
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in weights(sharded).items())


def test_the_dtype_is_that_of_the_tuned_model(folders, tmp_path):
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(folders / "tuned1", dtype=torch.bfloat16).save_pretrained(half)
    merge(make_merge("wise_ft", {}), folders / "base", [half], tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_a_checkpoint_of_a_training_leaves_its_state_behind(folders, tmp_path):
    shutil.copytree(folders / "tuned1", tmp_path / "checkpoint-2")
    for name in ("optimizer.pt", "trainer_state.json", "raft_state.json", "rng_state.pth"):
        (tmp_path / "checkpoint-2" / name).write_text("{}")
    merge(make_merge("wise_ft", {}), folders / "base", [tmp_path / "checkpoint-2"], tmp_path / "out")
    assert not {path.name for path in (tmp_path / "out").iterdir()} & {"optimizer.pt", "trainer_state.json"}


def test_what_does_not_fit_is_refused_before_anything_is_written(folders, tmp_path):
    base, tuned, out = folders / "base", folders / "tuned1", tmp_path / "out"
    wise_ft, soup = make_merge("wise_ft", {}), make_merge("soup", {})
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    (adapters / "adapter_config.json").write_text("{}")
    other = tmp_path / "other"
    other.mkdir()
    save_file({"model.layers.0.x": torch.zeros(2)}, other / "model.safetensors")
    for rule, first, models, error, message in (
        (wise_ft, None, [tuned], ConfigError, r"expected the base model \(--base\)"),
        (wise_ft, base, [tuned, tuned], ConfigError, "expected one tuned model, found 2"),
        (soup, None, [tuned], ConfigError, "expected two or more tuned models, found 1"),
        (wise_ft, base, [tmp_path / "none"], ModelError, "no such folder"),
        (wise_ft, base, [adapters], ModelError, "has LoRA adapters"),
        (wise_ft, base, [tmp_path], ModelError, "expected weights in model.safetensors"),
        (wise_ft, other, [tuned], ModelError, "another architecture"),
        (wise_ft, base, [other], ModelError, "another architecture"),
    ):
        with pytest.raises(error, match=message):
            merge(rule, first, models, out)
        assert not out.exists()
    with pytest.raises(ConfigError, match="exists already"):
        merge(wise_ft, base, [tuned], other)
    with pytest.raises(ConfigError, match="merge: expected one of fapm, lines, soup, wise_ft, found 'ties'"):
        make_merge("ties", {})
    with pytest.raises(ConfigError, match="expected an option of alpha, found 'beta'"):
        make_merge("wise_ft", {"beta": 0.5})
    with pytest.raises(ConfigError, match="alpha: expected a number from 0 to 1, found 2"):
        make_merge("wise_ft", {"alpha": 2})


def test_every_rule_cites_where_it_is_from():
    assert all("arXiv" in rule.citation for rule in MERGES.values())


def test_from_the_shell(folders, tmp_path, capsys):
    words = ["merge", "wise_ft", "--base", str(folders / "base"), "--tuned", str(folders / "tuned1")]
    assert main([*words, "--out", str(tmp_path / "out"), "alpha=0.25"]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert main([*words, "--out", str(tmp_path / "out2"), "alpha=much"]) == 2
    assert "expected option=number, found 'alpha=much'" in capsys.readouterr().err
