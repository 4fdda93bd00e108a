"""lambda: the paper's worked numbers, Eqs. 11-12 against plain floats, accumulation, bounds, state."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.train.balance import Balance


def steps_of(balance: Balance, losses: list[tuple[float, float]]) -> list[float]:
    weights = []
    for sft, kl in losses:
        weights.append(balance.weigh(sft, kl).item())
        balance.commit()
    return weights


@pytest.mark.parametrize(("kl", "expected"), [(0.5, 4.0), (0.1, 20.0)])
def test_worked_numbers(kl, expected):
    # The bias correction makes the first step's averages the losses themselves; equal losses keep them there.
    weights = steps_of(Balance(), [(2.0, kl)] * 5)
    assert weights == pytest.approx([expected] * 5, rel=1e-6)
    assert weights[-1] * kl == pytest.approx(2.0, rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    losses=st.lists(st.tuples(st.floats(1e-4, 20), st.floats(1e-4, 20)), min_size=1, max_size=12),
    beta=st.floats(0, 0.999),
)
def test_equations_11_and_12(losses, beta):
    m_sft = m_kl = 0.0
    expected = []
    for s, (sft, kl) in enumerate(losses, 1):
        m_sft = beta * m_sft + (1 - beta) * sft
        m_kl = beta * m_kl + (1 - beta) * kl
        expected.append((m_sft / (1 - beta**s)) / (m_kl / (1 - beta**s) + 1e-8))
    assert steps_of(Balance(beta), losses) == pytest.approx(expected, rel=1e-9)


def test_micro_batches_see_the_running_mean_and_the_step_is_committed_once():
    balance, whole = Balance(), Balance()
    steps_of(balance, [(3.0, 1.0)])
    steps_of(whole, [(3.0, 1.0)])
    balance.weigh(1.0, 0.25)  # the first micro-batch alone
    last = balance.weigh(1.5, 0.5)  # the mean of both
    balance.commit()
    assert last.item() == pytest.approx(steps_of(whole, [(1.5, 0.5)])[0], rel=1e-12)
    assert balance.state_dict() == whole.state_dict()
    assert balance.state_dict()["steps"] == 2


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_a_step_without_a_usable_loss_leaves_no_trace(kl):
    balance = Balance()
    steps_of(balance, [(2.0, 0.5), (1.0, 0.4)])
    before = balance.state_dict()
    assert balance.weigh(1.0, kl).item() == before["lambda"]
    balance.commit()
    assert balance.state_dict() == before


def test_a_divergence_rounded_below_zero_counts_as_zero():
    assert steps_of(Balance(lambda_max=10.0), [(2.0, -1e-7)]) == [10.0]


def test_no_gradient_flows_into_lambda():
    sft, kl = (torch.tensor(x, requires_grad=True) for x in (2.0, 0.5))
    weight = Balance().weigh(sft, kl)
    assert not weight.requires_grad
    (sft + weight * kl).backward()
    assert sft.grad == 1 and kl.grad == pytest.approx(4.0, rel=1e-6)


def test_bounds_clamp_lambda_and_not_the_averages():
    free, bounded = Balance(), Balance(lambda_min=0.5, lambda_max=3.0)
    losses = [(2.0, 0.1), (0.001, 2.0), (0.001, 2.0), (0.001, 9.0)]
    assert steps_of(bounded, losses) == [min(max(w, 0.5), 3.0) for w in steps_of(free, losses)]
    assert bounded.state_dict() | {"lambda": 0} == free.state_dict() | {"lambda": 0}


def test_fixed_lambda_never_moves():
    balance = Balance(fixed=0.1)
    assert steps_of(balance, [(2.0, 0.5), (5.0, math.nan)]) == [pytest.approx(0.1)] * 2
    balance.load_state_dict(Balance().state_dict())
    assert balance.weigh(1.0, 1.0).item() == pytest.approx(0.1)


def test_state_survives_a_round_trip():
    losses = [(2.0, 0.5), (1.7, 0.3), (0.2, 0.9)]
    whole, first, second = Balance(), Balance(), Balance()
    expected = steps_of(whole, losses)
    steps_of(first, losses[:2])
    second.load_state_dict(first.state_dict())
    assert steps_of(second, losses[2:]) == expected[2:]
