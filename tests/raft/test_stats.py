"""Statistics: intervals over items and trainings, paired tests, means over seeds, retention."""

import json
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.errors import InputError
from raft.stats.intervals import caution, interval, over_seeds
from raft.stats.retention import retention
from raft.stats.tests import compare, differences, paired_p
from studies.microworld.seeds import collect


def over_items(values, **options):
    """Of one training, a value an item."""
    return interval([{i: [value] for i, value in enumerate(values)}], **options)


def width(found):
    return found.high - found.low


def test_retention_is_relative_to_base_and_undefined_at_zero():
    kept = retention({"domain": 0.5, "general": 0.6, "format": 1.0}, {"domain": 0.0, "general": 0.8})
    assert kept == {"general": pytest.approx(0.75)}


def test_the_interval_matches_the_normal_approximation():
    values = np.random.default_rng(1).binomial(1, 0.7, size=400).astype(float)
    low, high = over_items(values.tolist())
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.008)
    assert high == pytest.approx(values.mean() + half, abs=0.008)


def test_the_interval_is_seeded_and_exact_without_spread():
    values = [0.0, 1.0, 1.0, 0.5]
    assert over_items(values, seed=3) == over_items(values, seed=3)
    assert over_items([1.0] * 5) == (1.0, 1.0)
    assert over_items([0.5]) == (0.5, 0.5)
    for nothing in ([], [{}], [{"a": []}], [{"a": [1.0]}, {}]):
        with pytest.raises(ValueError, match="at least one"):
            interval(nothing)


def test_the_size_of_a_batch_does_not_change_the_interval():
    values = np.random.default_rng(2).random(50).tolist()
    whole = over_items(values, resamples=1000)
    assert over_items(values, resamples=1000, room=50 * 37) == whole


def test_pairing_removes_what_items_share():
    rng = np.random.default_rng(0)
    difficulty = rng.random(200).tolist()
    first, second = {i: [d + 0.05] for i, d in enumerate(difficulty)}, {i: [d] for i, d in enumerate(difficulty)}
    low, high = interval([differences(first, second)])
    assert low == pytest.approx(0.05) and high == pytest.approx(0.05)
    assert width(interval([first])) > 0.05
    with pytest.raises(InputError, match="different items"):
        differences({"a": [1.0]}, {"a": [1.0], "b": [0.0]})


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=12), min_size=1, max_size=3), st.booleans())
def test_the_interval_lies_within_the_values(seeds, same_items):
    trainings = [{i if same_items else (seed, i): [v] for i, v in enumerate(of)} for seed, of in enumerate(seeds)]
    low, high = interval(trainings, resamples=200)
    values = [v for of in seeds for v in of]
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_trainings_are_drawn_before_their_items():
    """Three trainings that differ, each of 400 items of its own: pooled they would seem to be sure of the mean."""
    rng = np.random.default_rng(3)
    seeds = [rng.binomial(1, rate, size=400).astype(float) for rate in (0.2, 0.5, 0.8)]
    nested = interval([{(seed, i): [v] for i, v in enumerate(of)} for seed, of in enumerate(seeds)])
    pooled = over_items(np.concatenate(seeds).tolist())
    assert width(pooled) < 0.06 and width(nested) > 0.4
    assert nested.low == pytest.approx(0.2, abs=0.05) and nested.high == pytest.approx(0.8, abs=0.05)


def test_both_levels_add_up_as_their_variances():
    """Of a mean over S trainings of n items: the variance of the trainings' means by S, and that of the items by nS."""
    rng = np.random.default_rng(5)
    seeds, items = 20, 50
    found = rng.normal(0, 0.3, size=(seeds, 1)) + rng.normal(0, 1, size=(seeds, items))
    low, high = interval([{(s, i): [v] for i, v in enumerate(of)} for s, of in enumerate(found.tolist())])
    between = found.mean(1).var() / seeds
    within = found.var(axis=1).mean() / items / seeds
    assert (high - low) / (2 * 1.96) == pytest.approx((between + within) ** 0.5, rel=0.05)


def test_trainings_of_unlike_size_count_by_their_items():
    found = interval([{"a": [0.0]}, {"b": [1.0], "c": [1.0], "d": [1.0]}])
    assert found == (0.0, 1.0)  # one of them twice, or both: 0, 0.75 or 1


def test_an_item_of_several_trainings_counts_once():
    values = np.random.default_rng(4).random(100).tolist()
    once = over_items(values)
    alike = interval([{i: [v] for i, v in enumerate(values)}] * 4)
    assert width(alike) == pytest.approx(width(once), rel=0.05)
    together = interval([{i: [v] * 3 for i, v in enumerate(values)}])  # several values of an item
    assert together == pytest.approx(once)


def test_few_trainings_are_said_to_be_few():
    assert "3 trainings" in caution(3) and caution(1) == "" and caution(30) == ""


def test_over_seeds():
    assert over_seeds([1.0, 2.0, 3.0]) == {"mean": 2.0, "std": 1.0, "seeds": [1.0, 2.0, 3.0]}
    assert over_seeds([4.0]) == {"mean": 4.0, "std": 0.0, "seeds": [4.0]}


@pytest.mark.parametrize(("wins", "losses"), [(9, 1), (400, 49), (3, 3), (1, 0)])
def test_right_and_wrong_answers_give_mcnemars_exact_p(wins, losses):
    n = wins + losses
    tail = sum(comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    expected = min(1.0, 2 * tail)
    assert paired_p([1.0] * wins + [0.0] * 7 + [-1.0] * losses) == pytest.approx(expected, rel=1e-9)


def test_sign_flips_are_exact_for_few_items_and_random_for_many():
    assert paired_p([2.0] + [1.0] * 3) == 2 / 2**4  # all one way, or all the other
    assert paired_p([0.0, 0.0]) == paired_p([]) == 1.0
    rng = np.random.default_rng(0)
    assert paired_p((rng.random(100) + 0.1).tolist()) == 1 / 10_001
    even = rng.normal(0, 1, size=100).tolist()
    assert paired_p(even) == paired_p(even) > 0.01


def test_a_comparison_turns_an_item_with_all_its_seeds():
    seeds = [{i: [1.0 if i < 9 else -1.0] for i in range(10)}] * 2
    found = compare(seeds)
    assert found["difference"] == pytest.approx(0.8)
    # Nine of ten items for it under a fair coin: 22 of 1,024 ways. Two seeds make no twenty items of them.
    assert found["p"] == pytest.approx(22 / 1024)
    assert list(found) == ["p", "difference", "ci95"] and found["ci95"][0] < 0.8 < found["ci95"][1] <= 1


def test_seeds_of_the_demo_share_no_items(tmp_path):
    """Two seeds, in which RAFT is better by 0.25 and by 0.5: what separates them is chance between trainings."""
    gains = (0.25, 0.5)
    for seed, gain in enumerate(gains):
        folder = tmp_path / f"seed-{seed}"
        (folder / "eval").mkdir(parents=True)
        scores = {}
        for method, right in (("base", 0.0), ("sft", 0.25), ("raft", 0.25 + gain)):
            samples = [
                {"id": str(i), "suite": suite, "score": float(i < round(100 * right))}
                for suite in ("domain", "general", "format")
                for i in range(100)
            ]
            (folder / "eval" / f"{method}.json").write_text(json.dumps({"samples": samples}))
            scores[method] = {suite: right for suite in ("domain", "general", "format")}
        (folder / "summary.json").write_text(json.dumps({"scores": scores}))
    found = collect([tmp_path / "seed-0", tmp_path / "seed-1"])
    assert found["methods"]["raft"]["domain"] == {
        "mean": 0.625,
        "std": pytest.approx(0.25 / 2**0.5),
        "seeds": [0.5, 0.75],
    }
    test = found["tests"]["raft_vs_sft"]["domain"]
    assert list(test) == ["p", "difference", "ci95", "n"] and test["n"] == 200
    assert test["difference"] == 0.375 and test["p"] == pytest.approx(2 / 2**75)
    low, high = test["ci95"]
    assert low < 0.25 and high > 0.5
