"""linear_topk is exact: ties to the lowest id, whatever the values, the shape and the way of selection."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import KINDS, adversarial, fewer, make_case, sorted_topk

from raft_kernels import linear_topk
from raft_kernels.budgets import use_budgets
from raft_kernels.select import block_size, select, select_blocked

FEW = settings(max_examples=fewer(25, 10), deadline=None, derandomize=True)


def topk_of(z: torch.Tensor, k: int, **options):
    """linear_topk of given logits: the identity as head makes hidden states the logits."""
    return linear_topk(z, torch.eye(z.shape[1], dtype=z.dtype), k, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 17, 507])
def test_selection_is_a_stable_sort(kind, k):
    z = adversarial(kind, 6, 507)
    expected = sorted_topk(z, k)
    assert torch.equal(select(z, k), expected)
    for b in (2, 8, 32):
        padded = torch.full((6, -(-507 // b) * b), -math.inf)
        padded[:, :507] = z
        assert torch.equal(select_blocked(padded, k, b), expected)


@pytest.mark.parametrize("k", [1, 17, 512, 1101])
@pytest.mark.parametrize("kind", KINDS)
def test_adversarial_rows(kind, k):
    """One hidden unit makes the head's only column the logits, exactly, and its sign and size those of each token."""
    hidden, weight = torch.tensor([[1.0], [-1.0], [2.0]]), adversarial(kind, 1, 1101).view(-1, 1)
    z = hidden @ weight.t()
    top = linear_topk(hidden, weight, k)
    assert torch.equal(top.indices.long(), sorted_topk(z, k))
    torch.testing.assert_close(top.logits, z.gather(1, top.indices.long()), rtol=0, atol=0, equal_nan=True)


@FEW
@given(n=st.integers(1, fewer(5, 2)), v=st.integers(1, 300), data=st.data())
def test_ties_at_random(n, v, data):
    k = data.draw(st.integers(1, v))
    levels = data.draw(st.sampled_from([1, 2, 5, 1000]))
    z = torch.randint(-levels, levels + 1, (n, v), generator=torch.Generator().manual_seed(v)).float()
    top = topk_of(z, k)
    assert torch.equal(top.indices.long(), sorted_topk(z, k))
    assert torch.equal(top.logits, z.gather(1, top.indices.long()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "shape", [(fewer(507, 7), 252, 123, 17), (5, 12, 4096, 64), (1, 8, 33, 33), (9, 16, 1000, 1)], ids=str
)
def test_matches_fp64_logits(dtype, shape):
    n, h, v, k = shape
    c = make_case(n, h, v, dtype)
    top = linear_topk(*c.teacher, k, log_partition_at=1.5)
    z = c.teacher_hidden.double() @ c.teacher_weight.double().t()
    assert top.indices.dtype == torch.int32
    assert top.logits.dtype == top.log_partition.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (top.indices.diff(dim=-1) > 0).all()
    kept = z.gather(1, top.indices.long())
    tol = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(top.logits.double(), kept, atol=tol, rtol=0)
    # No logit that was left out exceeds the smallest one kept by more than fp32 rounding.
    left_out = z.scatter(1, top.indices.long(), -math.inf).amax(-1)
    assert (left_out <= kept.amin(-1) + tol).all()
    torch.testing.assert_close(top.log_partition.double(), torch.logsumexp(z / 1.5, -1), atol=tol, rtol=0)


def test_padding_of_the_head_is_never_chosen():
    c = make_case(6, 8, 100)
    weight = c.teacher_weight.clone()
    weight[90:] *= 100
    whole = linear_topk(c.teacher_hidden, weight[:90], 12, log_partition_at=1.0)
    padded = linear_topk(c.teacher_hidden, weight, 12, vocab_size=90, log_partition_at=1.0)
    for a, b in zip(whole, padded, strict=True):
        assert torch.equal(a, b)
    assert linear_topk(c.teacher_hidden, weight, 90, vocab_size=90).indices.max() == 89


def test_leading_sizes_and_strides():
    c = make_case(24, 10, 64)
    flat = linear_topk(*c.teacher, 5, log_partition_at=2.0)
    hidden = c.teacher_hidden.view(2, 3, 4, 10).transpose(0, 2).contiguous().transpose(0, 2)
    weight = c.teacher_weight.t().contiguous().t()
    assert not hidden.is_contiguous() and not weight.is_contiguous()
    top = linear_topk(hidden, weight, 5, log_partition_at=2.0)
    assert top.indices.shape == top.logits.shape == (2, 3, 4, 5)
    assert top.log_partition.shape == (2, 3, 4)
    assert torch.equal(top.indices.view(24, 5), flat.indices)
    torch.testing.assert_close(top.logits.view(24, 5), flat.logits)
    single = linear_topk(c.teacher_hidden[0], c.teacher_weight, 5, log_partition_at=2.0)
    assert single.logits.shape == (5,) and single.log_partition.shape == ()


def test_masked_tokens_hold_anything():
    c = make_case(8, 10, 300)
    mask = torch.tensor([1, 0, 1, 1, 0, 1, 1, 0], dtype=torch.bool)
    hidden = c.teacher_hidden.clone()
    hidden[~mask] = math.nan
    top = linear_topk(hidden, c.teacher_weight, 7, mask=mask, log_partition_at=1.0)
    kept = linear_topk(c.teacher_hidden[mask], c.teacher_weight, 7, log_partition_at=1.0)
    assert torch.equal(top.indices[mask], kept.indices)
    torch.testing.assert_close(top.logits[mask], kept.logits)
    assert (top.indices[~mask] == torch.arange(7)).all()
    assert (top.logits[~mask] == 0).all() and (top.log_partition[~mask] == 0).all()


def test_a_token_of_nan_does_not_touch_its_neighbours():
    c = make_case(8, 10, 300)
    hidden = c.teacher_hidden.clone()
    hidden[3] = math.nan
    top, clean = linear_topk(hidden, c.teacher_weight, 7), linear_topk(*c.teacher, 7)
    others = torch.arange(8) != 3
    assert torch.equal(top.indices[others], clean.indices[others])
    assert top.logits[3].isnan().all()


@pytest.mark.parametrize("budget", [1, 700, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_chunks_change_nothing(budget, dtype):
    c = make_case(fewer(23, 11), 12, 507, dtype)
    whole = linear_topk(*c.teacher, 17, log_partition_at=1.5, softcap=9.0)
    with use_budgets(cpu_logits=budget, cpu_cast=1000):
        parts = linear_topk(*c.teacher, 17, log_partition_at=1.5, softcap=9.0)
    assert torch.equal(parts.indices, whole.indices)
    torch.testing.assert_close(parts.logits, whole.logits)
    torch.testing.assert_close(parts.log_partition, whole.log_partition)


def test_has_no_gradient():
    c = make_case(3, 4, 20)
    top = linear_topk(c.teacher_hidden.requires_grad_(), c.teacher_weight.requires_grad_(), 4, log_partition_at=1.0)
    assert not top.logits.requires_grad and not top.log_partition.requires_grad


def test_block_size_follows_the_share_that_is_kept():
    assert block_size(65536, 512) in (8, 16)
    assert block_size(600, 512) == 1
    assert block_size(10, 10) == 1
