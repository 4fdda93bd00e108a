"""Paired tests of two methods that were asked the same items."""

import statistics
from collections.abc import Hashable, Sequence
from typing import TypedDict

import numpy as np
from scipy import stats

from raft.errors import InputError
from raft.stats.intervals import RESAMPLES, Training, interval


class Comparison(TypedDict):
    """Two methods that were asked the same items, by the first's values less the second's."""

    p: float  # two-sided, over items
    difference: float  # mean
    ci95: list[float]  # its interval, over seeds and items


def paired_p(differences: Sequence[float], *, flips: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p of paired differences, one an item, by sign flips: were the methods alike, each might be turned.

    Exact where all that are not 0 are of one size, as with right and wrong answers: McNemar's test. Exact too for up to
    13 of them; beyond, `flips` random ones, so that p is at least 1 / (flips + 1). 1 where nothing differs.
    The items' chance alone: it says nothing about another training of the same methods.
    """
    # Rounded: sums that cancel but for the last digits are ties.
    found = np.round(np.asarray(differences, dtype=np.float64), 12)
    found = found[found != 0]
    if not found.size:
        return 1.0
    if np.allclose(abs(found), abs(found[0]), rtol=1e-9, atol=0):
        return float(stats.binomtest(int((found > 0).sum()), found.size).pvalue)
    return float(
        stats.permutation_test(
            (found,),
            lambda flipped, axis: abs(flipped.sum(axis)).round(9),
            permutation_type="samples",
            alternative="greater",
            vectorized=True,
            n_resamples=flips,
            batch=max(1, (1 << 22) // found.size),
            rng=np.random.default_rng(seed),
        ).pvalue
    )


def differences(first: Training, second: Training) -> dict[Hashable, list[float]]:
    """Item -> value under `first` less that under `second`, value by value; InputError if they have unlike items."""
    if first.keys() != second.keys():
        raise InputError("the two methods were asked different items")
    return {
        item: [one - other for one, other in zip(values, second[item], strict=True)] for item, values in first.items()
    }


def compare(trainings: Sequence[Training]) -> Comparison:
    """trainings: the `differences` of two methods, a mapping a seed.

    p is over items, each with all its seeds; the interval is over seeds and items (`raft.stats.intervals`).
    """
    by_item: dict[Hashable, list[float]] = {}
    for items in trainings:
        for item, values in items.items():
            by_item.setdefault(item, []).extend(values)
    return Comparison(
        p=paired_p([sum(values) for values in by_item.values()]),
        difference=statistics.fmean(value for values in by_item.values() for value in values),
        ci95=list(interval(trainings)),
    )
