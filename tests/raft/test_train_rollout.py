"""When rollouts are generated and from which seed; the queue's state restores exactly those not yet trained on."""

import json

import pytest

from raft.engines.base import Completion
from raft.train.data import Example
from raft.train.rollout import RolloutQueue, call_seed
from tests.golden.training import config, trainer


def examples(count):
    return [Example(f"r{i}", "q", [i, i + 1], [1], [2]) for i in range(count)]


def batches(count, size=2, first=0):
    rows = examples(count * size)
    return iter([rows[i * size : (i + 1) * size] for i in range(first, count)])


class Source:
    """Completions that tell the call, the request and the prompt apart."""

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, sampling):
        self.calls.append((len(prompts), sampling.seed))
        return [Completion([sampling.seed % 1000, i, *prompt], "stop") for i, prompt in enumerate(prompts)]


def test_seeds_depend_on_run_step_and_rank_alone():
    seeds = {call_seed(seed, step, rank) for seed in range(5) for step in range(50) for rank in range(4)}
    assert len(seeds) == 1000 and all(0 <= seed < 2**31 for seed in seeds)
    assert call_seed(3, 4, 1) == call_seed(3, 4, 1)


@pytest.mark.parametrize(
    ("ahead", "left", "calls"), [(1, 100, [4, 4, 4]), (2, 100, [8, 4]), (3, 100, [12]), (5, 2, [8, 4])]
)
def test_one_call_feeds_steps_per_refresh_steps_but_not_more_than_the_run_has_left(tmp_path, ahead, left, calls):
    queue, source, data = (
        RolloutQueue(config(tmp_path, steps_per_refresh=ahead, gradient_accumulation_steps=2)),
        Source(),
        batches(6),
    )
    for step in range(3):
        micros = queue.take(data, 2, step, left, source)
        assert [[e.id for e in micro.examples] for micro in micros] == [
            [f"r{4 * step + 2 * i + j}" for j in (0, 1)] for i in (0, 1)
        ]
        for micro in micros:
            assert [s.completion.token_ids[2:] for own in micro.rollouts for s in own] == [
                e.prompt for e in micro.examples
            ]
    assert [count for count, _ in source.calls] == calls
    assert queue.take(data, 2, 3, left, source) == [] and len(source.calls) == len(calls)


def test_several_rollouts_for_each_prompt(tmp_path):
    queue, source = RolloutQueue(config(tmp_path, rollouts_per_prompt=3)), Source()
    micro = queue.take(batches(1), 1, 0, 9, source)[0]
    assert [[s.completion.token_ids[1:] for s in own] for own in micro.rollouts] == [
        [[i, 0, 1] for i in range(3)],
        [[i, 1, 2] for i in range(3, 6)],
    ]


def test_methods_without_a_teacher_generate_nothing(tmp_path):
    queue, source = RolloutQueue(config(tmp_path, method="sft")), Source()
    assert [micro.rollouts for micro in queue.take(batches(3), 3, 0, 9, source)] == [[], [], []]
    assert source.calls == [] and queue.state_dict() == []


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_resumed_queue_goes_on_where_the_killed_one_was(tmp_path, stop):
    args = config(tmp_path, steps_per_refresh=2, rollouts_per_prompt=2)
    whole, first, second = RolloutQueue(args), RolloutQueue(args), RolloutQueue(args)
    data = batches(6)
    expected = [whole.take(data, 1, step, 6 - step, Source()) for step in range(6)]
    data, source = batches(6), Source()
    got = [first.take(data, 1, step, 6 - step, source) for step in range(stop)]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    data = batches(6, first=stop)  # the Trainer skips what was trained on
    got += [second.take(data, 1, step, 6 - step, source) for step in range(stop, 6)]
    assert got == expected
    assert len(source.calls) == 3


def test_rollouts_of_other_rows_are_not_taken(tmp_path):
    args = config(tmp_path, steps_per_refresh=2)
    first, second = RolloutQueue(args), RolloutQueue(args)
    first.take(batches(2), 1, 0, 9, Source())
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="belong to other rows"):
        second.take(batches(2), 1, 1, 9, Source())


def test_the_engine_is_refreshed_before_it_is_asked_again(tmp_path):
    made = trainer(tmp_path, steps_per_refresh=2, max_steps=4)
    refreshed = []
    generate = made.engine.generate
    made.engine.generate = lambda prompts, sampling: (
        refreshed.append(made.engine.refreshed),
        generate(prompts, sampling),
    )[1]
    made.train()
    # Once before the first call, then after every second step, and when all is done.
    assert refreshed == [1, 2] and made.engine.refreshed == 4
    assert not made.engine.closed, "an engine that was given is not the trainer's to close"
