"""How weights are matched, shared and copied, on a model that fuses and pads as vLLM does."""

import weakref
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from raft.engines.vllm.copying import CopiedWeights
from raft.engines.vllm.sharing import CannotShare, OffGPU, SharedWeights, match
from raft.errors import EngineError
from raft.models.checkpoint import checkpoint_tensors
from tests.tiny import build


class Student(nn.Module):
    """Query, key and value apart; the head may be tied."""

    def __init__(self, vocab=10, width=8, kv=4, tied=False, bias=True):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(width, kv, bias=bias)
        self.v_proj = nn.Linear(width, kv, bias=bias)
        self.head = nn.Linear(width, vocab, bias=False)
        if tied:
            self.head.weight = self.embed.weight


class Padded(nn.Module):
    def __init__(self, rows, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, width), requires_grad=False)
        self.num_embeddings_padded = rows


class Served(nn.Module):
    """Query, key and value under each other, the vocabulary padded to a multiple of 8."""

    packed_modules_mapping: ClassVar = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}

    def __init__(self, student, tied=False, order=("q_proj", "k_proj", "v_proj"), dtype=torch.float32):
        super().__init__()
        vocab, width = student.embed.weight.shape
        rows = -(-vocab // 8) * 8
        self.kv = student.k_proj.out_features
        self.embed = Padded(rows, width)
        self.qkv_proj = nn.Linear(
            width, sum(getattr(student, n).out_features for n in order), student.q_proj.bias is not None
        )
        self.head = self.embed if tied else Padded(rows, width)
        with torch.no_grad():
            self.embed.weight[:vocab] = student.embed.weight
            self.head.weight[:vocab] = student.head.weight
            self.qkv_proj.weight.copy_(torch.cat([getattr(student, n).weight for n in order]))
            if self.qkv_proj.bias is not None:
                self.qkv_proj.bias.copy_(torch.cat([getattr(student, n).bias for n in order]))
        self.to(dtype)


def fill(served, tensors, order=("q_proj", "k_proj", "v_proj")) -> None:
    """As vLLM loads: whatever comes, to where it belongs."""
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if module in order:
            home = getattr(served.qkv_proj, leaf).data
            sizes = [{"q_proj": home.shape[0] - 2 * served.kv}.get(part, served.kv) for part in order]
            home.split(sizes)[order.index(module)].copy_(tensor)
        else:
            served.get_submodule(module).weight.data[: len(tensor)] = tensor


def shared(student, served, **how) -> SharedWeights:
    for parameter in served.parameters():
        parameter.data.zero_()
    return SharedWeights(student, served, lambda tensors: fill(served, tensors, **how))


@given(vocab=st.integers(1, 20), width=st.integers(1, 9), kv=st.integers(1, 5), tied=st.booleans(), bias=st.booleans())
def test_training_writes_where_generation_reads(vocab, width, kv, tied, bias):
    student = Student(vocab, width, kv, tied, bias)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    served = Served(student, tied)
    weights = shared(student, served)
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, before[name])
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
    weights.refresh()
    assert torch.equal(
        served.qkv_proj.weight, torch.cat([student.q_proj.weight, student.k_proj.weight, student.v_proj.weight])
    )
    assert torch.equal(served.embed.weight[:vocab], student.embed.weight)
    assert torch.equal(served.head.weight[:vocab], student.head.weight)
    assert served.head.weight[vocab:].abs().sum() == 0
    assert all(p.is_contiguous() for p in student.parameters())


@pytest.mark.parametrize("what", ["data", "to", "parameter"])
def test_moved_parameters_are_found(what):
    student = Student()
    weights = shared(student, Served(student))
    weights.refresh()
    if what == "data":
        student.k_proj.weight.data = student.k_proj.weight.data.clone()
    elif what == "to":
        student.double().float()
    else:
        student.k_proj.weight = nn.Parameter(student.k_proj.weight.detach().clone())
    with pytest.raises(
        EngineError, match="no longer live in the engine's storage.*" + ("k_proj.weight" if what != "to" else "")
    ):
        weights.refresh()


def test_another_order_of_rows_is_not_taken_for_the_same():
    student = Student(kv=8)  # query, key and value of one shape: only the numbers tell them apart
    order = ("k_proj", "q_proj", "v_proj")
    served = Served(student, order=order)
    with pytest.raises(CannotShare, match="in another form"):
        match(served, checkpoint_tensors(student))
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    with pytest.raises(CannotShare, match="in another form"):
        shared(student, served, order=order)
    # What had moved in before that was found has moved out again.
    theirs = {p.untyped_storage().data_ptr() for p in served.parameters()}
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.untyped_storage().data_ptr() not in theirs


def test_the_model_gives_up_its_memory_piece_by_piece():
    student = Student(vocab=1000, width=64)
    served = Served(student)
    own = {name: weakref.ref(p.untyped_storage()) for name, p in student.named_parameters()}
    most = 0

    def load(tensors):
        nonlocal most
        fill(served, tensors)
        alive = {name for name, storage in own.items() if storage() is not None}
        gone = own.keys() - alive
        most = max(most, len(gone))
        assert tensors.keys() <= alive
        assert not gone & tensors.keys()

    SharedWeights(student, served, load)
    assert most >= len(own) - 3  # all but the parts of the last tensor were gone when that was loaded


def test_storage_that_the_engine_replaces_later_is_found():
    student = Student()
    served = Served(student)
    weights = shared(student, served)
    weights.check_engine()
    served.qkv_proj.weight.data = served.qkv_proj.weight.data.clone()
    with pytest.raises(CannotShare, match=r"the engine has repacked qkv_proj\.weight"):
        weights.check_engine()
    with torch.no_grad():
        served.head.weight.zero_()
    assert student.head.weight.abs().sum() > 0  # the model has a copy of its own again


def test_reasons_not_to_share():
    student = Student()
    with pytest.raises(CannotShare, match="is torch.float32, the engine's is torch.bfloat16"):
        shared(student, Served(student, dtype=torch.bfloat16))
    tied = Student(tied=True)
    with pytest.raises(CannotShare, match="the engine's head.weight has no counterpart head.weight"):
        shared(tied, Served(tied, tied=False))
    buffered = Student()
    buffered.register_buffer("ages", torch.zeros(3))
    with pytest.raises(CannotShare, match="ages is a buffer"):
        shared(buffered, Served(buffered))
    served = Served(student)
    student.extra = nn.Linear(2, 2)
    with pytest.raises(CannotShare, match="no parameter for extra.weight"):
        match(served, checkpoint_tensors(student))
    del student.extra, student.v_proj
    with pytest.raises(CannotShare, match="no counterpart v_proj.weight"):
        match(served, checkpoint_tensors(student))
    nothing_moved = Student()
    served = Served(nothing_moved, dtype=torch.bfloat16)
    addresses = [p.data_ptr() for p in nothing_moved.parameters()]
    with pytest.raises(CannotShare):
        shared(nothing_moved, served)
    assert [p.data_ptr() for p in nothing_moved.parameters()] == addresses


def test_rows_that_nobody_fills_are_found():
    student = Student()
    served = Served(student)
    served.qkv_proj.weight = nn.Parameter(torch.cat([served.qkv_proj.weight, torch.zeros(1, 8)]))
    with pytest.raises(CannotShare, match="1 rows more"):
        match(served, checkpoint_tensors(student))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_a_refresh_copies_in_place(dtype, tied):
    student = Student(tied=tied)
    served = Served(student, tied=tied, dtype=dtype)
    address = served.qkv_proj.weight.data_ptr()
    weights = CopiedWeights(
        student, match(served, checkpoint_tensors(student)), load=lambda tensors: pytest.fail("not needed")
    )
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.normal_()
    weights.refresh()
    assert served.qkv_proj.weight.data_ptr() == address
    rows = torch.cat([student.q_proj.weight, student.k_proj.weight, student.v_proj.weight])
    assert torch.equal(served.qkv_proj.weight, rows.to(dtype))
    assert torch.equal(served.head.weight[:10], student.head.weight.to(dtype))


def test_without_slices_the_engine_loads_by_itself():
    student = Student()
    loaded = {}
    CopiedWeights(student, None, load=loaded.update).refresh()
    assert loaded.keys() == student.state_dict().keys()


def test_lora_is_merged_as_peft_merges(tmp_path):
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(build("llama", tmp_path))
    names = set(base.state_dict())
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(base, config)
    got = {name: tensor.clone() for name, tensor in checkpoint_tensors(model).items()}
    assert set(got) == names
    with model.disable_adapter():
        without = {name: tensor.clone() for name, tensor in checkpoint_tensors(model).items()}
    expected = model.merge_and_unload().state_dict()
    for name in names:
        torch.testing.assert_close(got[name], expected[name])
        assert torch.equal(without[name], expected[name]) != ("q_proj" in name or "down_proj" in name)


def test_lora_with_whole_modules_is_refused(tmp_path):
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(build("llama", tmp_path))
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    with pytest.raises(EngineError, match="modules_to_save"):
        checkpoint_tensors(model)


def test_parameters_give_up_their_memory_and_keep_their_hooks():
    student = Student(vocab=100, width=16)
    parameters = dict(student.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    # DDP hangs its hooks on these nodes, and holds on to them.
    nodes = [p.expand_as(p).grad_fn.next_functions[0][0] for p in parameters.values()]
    student.q_proj.weight.data = student.head.weight.data[:16]  # a part of another's storage, which stays
    before["q_proj.weight"] = before["head.weight"][:16]
    away = OffGPU(parameters, device_type="cpu")
    assert away.copies.keys() == parameters.keys() - {"q_proj.weight", "head.weight"}
    for name, copy in away.copies.items():
        assert torch.equal(copy, before[name])
        assert parameters[name].untyped_storage().nbytes() == 0
    student.k_proj.weight.data = away.copies["k_proj.weight"] + 1  # it has moved elsewhere
    before["k_proj.weight"] = before["k_proj.weight"] + 1
    away.restore()
    away.restore()
    for name, p in parameters.items():
        assert torch.equal(p, before[name]), name
    assert nodes == [p.expand_as(p).grad_fn.next_functions[0][0] for p in parameters.values()]


def test_what_has_no_memory_moves_in_from_its_copy():
    student = Student()
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    served = Served(student)
    away = OffGPU(dict(student.named_parameters()), device_type="cpu")
    SharedWeights(student, served, lambda tensors: fill(served, tensors), away.copies)
    away.restore()
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, before[name])
    assert torch.equal(served.head.weight[:10], before["head.weight"])


def test_weights_that_are_no_plain_numbers_are_refused():
    student = Student()
    student.is_quantized = True
    with pytest.raises(EngineError, match="Student is quantised"):
        checkpoint_tensors(student)
    student.is_quantized = False
    student.k_proj.weight.ds_id = 3
    with pytest.raises(EngineError, match=r"k_proj\.weight is partitioned by DeepSpeed ZeRO-3"):
        checkpoint_tensors(student)


def adapted(tmp_path, **settings):
    peft = pytest.importorskip("peft")
    model = AutoModelForCausalLM.from_pretrained(build("qwen3_moe", tmp_path))
    return peft.get_peft_model(model, peft.LoraConfig(r=4, init_lora_weights=False, **settings))


def test_experts_are_named_as_in_a_checkpoint(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(build("qwen3_moe", tmp_path))
    tensors = checkpoint_tensors(model)
    assert tensors.keys() == load_file(tmp_path / "model.safetensors").keys()
    ours = model.model.layers[1].mlp.experts.down_proj[3]
    assert torch.equal(tensors["model.layers.1.mlp.experts.3.down_proj.weight"], ours)


def test_adapters_of_experts_are_refused(tmp_path):
    model = adapted(tmp_path, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"])
    with pytest.raises(EngineError, match=r"gate_up_proj is not on a layer's weight"):
        checkpoint_tensors(model)


def test_an_adapter_that_is_merged_already_counts_once(tmp_path):
    model = adapted(tmp_path, target_modules=["q_proj", "v_proj"])
    before = checkpoint_tensors(model)
    model.merge_adapter()
    after = checkpoint_tensors(model)
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-5, atol=1e-6)


def test_memory_that_was_given_up_is_no_home_for_another_weight():
    """On a GPU all numbers wait elsewhere while vLLM starts; a head without a place there was taken for a tied one."""
    student = Student()
    served = Served(student)
    del served.head
    off = OffGPU(dict(student.named_parameters()), device_type="cpu")
    with pytest.raises(CannotShare, match=r"no parameter for head.weight"):
        SharedWeights(student, served, lambda tensors: fill(served, tensors), off.copies)
    off.restore()
