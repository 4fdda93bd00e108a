"""The selection kernels on given logits, and the product that finds the maxima of groups on its way, against a stable
sort. Interpreted: test_triton_interpreter.py starts this file in a process of its own."""

import math

import pytest
import torch
from kernel_cases import KINDS, adversarial, make_case, selection, sorted_topk

from raft_kernels import linear_topk
from raft_kernels.dispatch import INTERPRETED
from raft_kernels.head import Head

if not INTERPRETED:
    pytest.skip("run interpreted by test_triton_interpreter.py", allow_module_level=True)

from hypothesis import given, settings
from hypothesis import strategies as st

from raft_kernels.gpu import project, select
from raft_kernels.gpu.tiles import use_tiles

V = 1101  # no multiple of any group size but 1
GROUPS = {1: 32, 17: 8, 512: 2, V: 1}  # K to the size of a group


def test_every_group_size_occurs():
    assert {k: select.group_size(V, k) for k in GROUPS} == GROUPS
    assert select.group_size(128256, 512) == 16


@pytest.mark.parametrize("k", GROUPS)
@pytest.mark.parametrize("kind", KINDS)
def test_adversarial_rows(kind, k):
    """What lies beyond the vocabulary in a row of the buffer is no logit."""
    z = torch.cat([adversarial(kind, 2, V), torch.full((2, 11), math.inf)], dim=1)
    ids, log_partition = selection(z, V, k, 1.5)
    assert torch.equal(ids.long(), sorted_topk(z[:, :V], k))
    expected = torch.logsumexp(z[:, :V] / 1.5, -1)
    torch.testing.assert_close(log_partition, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(n=st.integers(1, 3), v=st.integers(1, 600), levels=st.sampled_from([1, 2, 5, 100]), data=st.data())
def test_ties_at_random(n, v, levels, data):
    k = data.draw(st.integers(1, v))
    z = torch.randint(-levels, levels + 1, (n, v), generator=torch.Generator().manual_seed(v)).float()
    assert torch.equal(selection(z, v, k, None)[0].long(), sorted_topk(z, k))


@pytest.mark.parametrize("v, k", [(33000, 32800), (70000, 20000)])
def test_rows_of_more_lanes_than_a_program_has(v, k):
    assert not select.suits(v, k)
    z = adversarial("few values", 2, v)
    ids, log_partition = selection(z, v, k, 0.7)
    assert torch.equal(ids.long(), sorted_topk(z, k))
    torch.testing.assert_close(log_partition, torch.logsumexp(z / 0.7, -1))


def test_longest_row_that_suits():
    v = k = select.MAX_LANES
    assert select.suits(v, k - 1) and select.group_size(v, k - 1) == 1
    z = adversarial("two values", 1, v)
    assert torch.equal(selection(z, v, k - 1, None)[0].long(), sorted_topk(z, k - 1))


def whole_numbers(n: int, h: int, v: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, head and bias whose logits are exact in any order of summation, with many ties."""
    return tuple(torch.randint(-2, 3, shape).to(dtype) for shape in ((n, h), (v, h), (v,)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"vocab_size": 900},
        {"logit_scale": 0.5, "bias": True},
        {"softcap": 3.0},  # which the fused product leaves to the other way
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_fused_product_chooses_the_same_ids(monkeypatch, dtype, options):
    n, k = 4, 17
    hidden, weight, bias = whole_numbers(n, 72, V, dtype)
    weight[options.get("vocab_size", V) :] = math.nan
    if "bias" in options:
        options = {**options, "bias": bias}
    mask = torch.arange(n) != 1
    calls = []
    fused = project.logits_and_maxima
    monkeypatch.setattr(project, "logits_and_maxima", lambda *args: calls.append(1) or fused(*args))
    with use_tiles(fused=False):
        expected = linear_topk(hidden, weight, k, mask=mask, **options)
    assert not calls
    with use_tiles(fused=True):
        got = linear_topk(hidden, weight, k, mask=mask, **options)
    assert calls or "softcap" in options
    assert torch.equal(got.indices, expected.indices)
    assert torch.equal(got.logits, expected.logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_fused_logits_and_maxima(dtype):
    """More tokens than a tile has; the maxima are those of the logits that were written."""
    c = make_case(130, 40, V, dtype)
    head = Head(c.teacher_weight, c.student_bias, V, 0.7, None, dtype, "triton")
    z, expected = torch.full((130, V), math.nan), torch.empty(130, V)
    maxima = project.logits_and_maxima(head, c.teacher_hidden, 8, z)
    torch.testing.assert_close(z, head.logits_(expected, c.teacher_hidden), rtol=1e-5, atol=1e-5)
    assert torch.equal(maxima, select.group_maxima(z, V, 8)[0])


def test_fused_product_only_where_it_suits():
    c = make_case(4, 16, 600, torch.bfloat16)
    head = Head(c.teacher_weight, None, 600, 1.0, None, torch.bfloat16, "triton")
    with use_tiles(fused=True):
        assert project.suits(head, c.teacher_hidden, 9, None)
        assert not project.suits(head, c.teacher_hidden, 9, 1.5)  # it has no log-partition
        assert not project.suits(head, c.teacher_hidden, 600, None)  # no groups
        assert not project.suits(head, c.teacher_hidden.float(), 9, None)
        assert not project.suits(head, c.teacher_hidden[:, 1:], 9, None)  # rows that start at no 16 bytes
