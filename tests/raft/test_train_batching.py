"""Micro-batches by tokens: what goes into a pack, that the numbers of the step stay the same, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raft.engines.base import Completion
from raft.errors import ConfigError
from raft.train.batching import Unit, split
from raft.train.data import Example
from raft.train.losses import student_batch
from raft.train.rollout import Scored
from tests.golden.training import exact, lines, rows, trainer


def unit(i, answer, rollouts):
    example = Example(f"r{i}", "q", [1], [2] * answer, [3])
    return Unit(example, tuple(Scored(example, Completion([4] * n, "stop")) for n in rollouts))


@given(
    st.lists(st.tuples(st.integers(1, 30), st.lists(st.integers(1, 30), max_size=2)), max_size=20),
    st.integers(1, 100),
    st.integers(1, 4),
)
def test_rows_are_split_by_tokens_and_none_is_lost(sizes, budget, least):
    all_rows = [unit(i, *size) for i, size in enumerate(sizes)]
    assert [row.tokens for row in all_rows] == [a + sum(r) for a, r in sizes]
    packs = split(all_rows, budget, least)
    assert sorted(row.example.id for pack in packs for row in pack) == sorted(row.example.id for row in all_rows)
    assert len(packs) >= least
    for pack in packs:
        numbers = [int(row.example.id[1:]) for row in pack]
        assert numbers == sorted(numbers)
        # Only one that is too long by itself may be beyond the budget.
        assert sum(row.tokens for row in pack) <= max(budget, *(row.tokens for row in all_rows), 0)
        if pack:
            assert student_batch(pack).pack.tokens == sum(row.tokens for row in pack)
    if len(packs) > least:
        assert all(packs)  # no more packs than needed


def test_a_pack_without_rows_has_a_token_and_no_loss(tmp_path):
    batch = student_batch([])
    assert batch.pack.tokens == 1
    assert not len(batch.sft_positions) and not len(batch.kl_positions) and batch.teacher is None
    made = trainer(tmp_path)
    with made.student.attention():
        found = made._losses(made.model, batch)
        (found.sft + found.kl).backward()
    assert found.sft == 0 and found.kl == 0 and not len(found.kl_per_rollout)
    # Every parameter has its gradient: DDP would wait for one that has none.
    assert all(p.grad is not None and not p.grad.any() for p in made.model.parameters())


def train(made):
    """Trains, all rows in every step; the tokens of every pack."""
    sizes, own = [], made.get_batch_samples

    def recorded(*args):
        inputs, answer_tokens = own(*args)
        packs = [batch for micro in inputs for batch in micro["packs"]]
        scored = [s for batch in packs for s in batch.scored]
        whole = [
            Unit(example, tuple(s for s in scored if s.example == example), made.student.shares_prompts)
            for example in made.train_dataset
        ]
        ids = sum(batch.pack.input_ids.numel() for batch in packs)
        assert ids == sum(row.tokens for row in whole) * bool(inputs)  # no padding, and no row is left out
        sizes.extend(batch.pack.tokens for batch in packs)
        return inputs, answer_tokens

    made.get_batch_samples = recorded
    made.train()
    return sizes


SETTINGS = {
    "data": rows(6), "dtype": torch.float64, "max_steps": 2, "train_sampling_strategy": "sequential",
    "weight_decay": 0.0, "optim": "sgd", "learning_rate": 0.02, "max_grad_norm": 0.0, "lr_scheduler_type": "constant",
}  # fmt: skip


@pytest.mark.parametrize(
    "settings", [{"method": "sft"}, {"fixed_lambda": 2.0}, {"fixed_lambda": 2.0, "rollouts_per_prompt": 2}]
)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_budget_changes_the_forwards_and_not_the_step(tmp_path, settings, accumulation):
    whole = trainer(tmp_path / "whole", **SETTINGS, per_device_train_batch_size=6, **settings)
    largest = max(train(whole))
    budget = largest // 2 if settings.get("method") == "sft" else 230
    cut = trainer(
        tmp_path / "cut", **SETTINGS, per_device_train_batch_size=6 // accumulation, **settings,
        gradient_accumulation_steps=accumulation, max_tokens_per_micro_batch=budget,
    )  # fmt: skip
    packed = train(cut)
    assert len(packed) >= 4 and max(packed) <= budget < largest
    for a, b in zip(exact(tmp_path / "whole/metrics.jsonl"), exact(tmp_path / "cut/metrics.jsonl"), strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert b[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), name
    for a, b in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_lambda_of_the_step_is_that_of_all_its_packs(tmp_path):
    whole = trainer(tmp_path / "whole", **SETTINGS | {"max_steps": 1}, per_device_train_batch_size=6)
    cut = trainer(
        tmp_path / "cut", **SETTINGS | {"max_steps": 1}, per_device_train_batch_size=6, max_tokens_per_micro_batch=230
    )
    whole.train()
    assert len(train(cut)) > 1
    assert cut.balance.state_dict() == pytest.approx(whole.balance.state_dict(), rel=1e-10)


def test_fewer_packs_than_micro_batches(tmp_path):
    """The rows of three micro-batches fit into one forward."""
    made = trainer(
        tmp_path,
        **SETTINGS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        max_tokens_per_micro_batch=5000,
    )
    assert len(train(made)) == 2
    assert made.state.global_step == 2


def test_a_budget_that_the_longest_row_may_not_fit_into_is_refused(tmp_path):
    data = [*rows(3), {"id": "long", "question": "why? " * 20, "answer": "so"}]
    with pytest.raises(
        ConfigError, match=r"max_tokens_per_micro_batch: expected at least \d+, which row long may need"
    ):
        trainer(tmp_path, data=data, max_tokens_per_micro_batch=150)
    with pytest.raises(
        ConfigError, match="max_tokens_per_micro_batch: expected a whole number of at least 1 or null, found 0"
    ):
        trainer(tmp_path, max_tokens_per_micro_batch=0)


def test_an_offloaded_teacher_is_there_only_while_it_is_asked(tmp_path):
    """As on a GPU; here both memories are the same."""
    teacher = trainer(tmp_path).teacher
    teacher._home = {p: p.data.clone() for p in teacher.model.model.parameters()}
    teacher._leave()
    homes = {p: p.data_ptr() for p in teacher._home}
    with pytest.raises(RuntimeError, match="out of memory"), teacher.present():
        raise RuntimeError("out of memory")
    assert {p: p.data_ptr() for p in teacher._home} == homes
    assert not any(p.requires_grad for p in homes)


@pytest.mark.parametrize(
    "settings", [{"teacher_offload": True}, {"teacher_offload": True, "max_tokens_per_micro_batch": 240}]
)
def test_a_teacher_that_comes_once_a_refresh_says_the_same(tmp_path, settings):
    plain = trainer(tmp_path / "plain", max_steps=4, steps_per_refresh=2, dtype=torch.float64)
    offloaded = trainer(tmp_path / "offloaded", max_steps=4, steps_per_refresh=2, dtype=torch.float64, **settings)
    calls = []
    for made in (plain, offloaded):
        score = made.teacher.score
        made.teacher.score = lambda scored, *args, score=score, made=made: (
            calls.append((made is plain, len(scored))),
            score(scored, *args),
        )[1]
        made.train()
    assert [n for mine, n in calls if mine] == [2, 2, 2, 2]
    assert [n for mine, n in calls if not mine] == [4, 4]
    for a, b in zip(
        lines(tmp_path / "plain/rollouts.jsonl"), lines(tmp_path / "offloaded/rollouts.jsonl"), strict=True
    ):
        assert a["loss_kl"] == pytest.approx(b["loss_kl"], rel=1e-12)
