"""TopKDistillationLoss: linear_topk_kl with a reduction that is right under gradient accumulation."""

import pytest
import torch
from kernel_cases import leaves, make_case

from raft_kernels import TopKDistillationLoss, linear_topk, linear_topk_kl


def test_reductions():
    c = make_case(8, 6, 50)
    mask = torch.tensor([1, 1, 0, 1, 0, 1, 1, 1], dtype=torch.bool)
    args = (*c.student[:2], *c.teacher)
    per_token = linear_topk_kl(*args, k=5, temperature=1.2, divergence="reverse", mask=mask)
    options = {"k": 5, "temperature": 1.2, "divergence": "reverse"}
    for reduction, expected in (("none", per_token), ("sum", per_token.sum()), ("mean", per_token.sum() / 6)):
        module = TopKDistillationLoss(reduction=reduction, **options)
        torch.testing.assert_close(module(*args, mask=mask), expected)
    mean = TopKDistillationLoss(**options)
    torch.testing.assert_close(mean(*args), linear_topk_kl(*args, **options).mean())
    torch.testing.assert_close(mean(*args, mask=mask, num_items=12), per_token.sum() / 12)
    torch.testing.assert_close(mean(*args, mask=mask, num_items=torch.tensor(12)), per_token.sum() / 12)


def test_micro_batches_add_up_to_the_batch():
    c = make_case(12, 6, 50)
    mask = torch.rand(12) > 0.4
    module = TopKDistillationLoss(k=5)
    whole, parts = leaves(c.student[:2]), leaves(c.student[:2])
    module(*whole, *c.teacher, mask=mask).backward()
    for rows in (slice(0, 2), slice(2, 9), slice(9, 12)):
        loss = module(
            parts[0][rows], parts[1], c.teacher_hidden[rows], c.teacher_weight, mask=mask[rows], num_items=mask.sum()
        )
        loss.backward()
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_a_kept_teacher():
    c = make_case(7, 6, 50)
    module = TopKDistillationLoss(k=5, softcap=4.0)
    teacher = linear_topk(*c.teacher, 5, softcap=4.0)
    torch.testing.assert_close(module(*c.student[:2], teacher), module(*c.student[:2], *c.teacher))
    with pytest.raises(ValueError, match="teacher_weight is missing"):
        module(*c.student[:2], c.teacher_hidden)


@pytest.mark.parametrize("mask", [torch.zeros(4, dtype=torch.bool), None], ids=["all masked", "no tokens"])
def test_nothing_to_average_is_an_attached_zero(mask):
    c = make_case(4 if mask is not None else 0, 6, 50)
    x = leaves(c.student[:2])
    loss = TopKDistillationLoss(k=5)(*x, *c.teacher, mask=mask)
    assert loss.item() == 0
    loss.backward()
    assert (x[1].grad == 0).all()


def test_a_wrong_reduction_is_named():
    with pytest.raises(ValueError, match="reduction='avg' is unknown; use one of mean, sum, none"):
        TopKDistillationLoss(reduction="avg")


def test_it_prints_its_settings():
    assert repr(TopKDistillationLoss(k=7, tail="bucket")) == (
        "TopKDistillationLoss(k=7, temperature=1.5, reduction='mean', tail='bucket')"
    )
