"""Confidence intervals of means over trainings and items, by the percentile bootstrap; means and spread over seeds.

A training is what one seed gave: {item: its values}, most often one value an item. Two sources of chance stand behind
a mean: which items were asked, and which seed the model was trained with. The items of one training share its luck, so
they say little about the next training. Both levels are drawn anew: first trainings, then items within each.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 10_000
FEW = 10  # trainings; an interval over fewer is called rough
ROOM = 1 << 21  # items drawn at a time: about 64 MiB whatever the number of items

Training = Mapping[Any, Sequence[float]]


class Interval(NamedTuple):
    low: float
    high: float


class Spread(TypedDict):
    """One figure over several seeds."""

    mean: float
    std: float  # of the sample (n - 1); 0 for a single seed
    seeds: list[float]  # the value of each


def interval(
    trainings: Sequence[Training],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    room: int = ROOM,
) -> Interval:
    """Confidence interval of the mean over the trainings, each of which counts alike, of the mean of its values.

    An item that several trainings answered is drawn for all of them together: another training does not make it a new
    item. All values that a training has of an item are drawn together too. Of one training only items are drawn.
    room: how many items are drawn at a time, which bounds the memory.
    ValueError without trainings, items or values.
    """
    if not trainings or any(not items or any(not len(v) for v in items.values()) for items in trainings):
        raise ValueError("interval: expected at least one training, at least one item each and one value per item")
    names = list(dict.fromkeys(item for items in trainings for item in items))
    shared = len(trainings) == 1 or len(names) < sum(map(len, trainings))
    columns = [names if shared else list(items) for items in trainings]
    tables = [
        np.array([[float(sum(of.get(item, ()))), len(of.get(item, ()))] for item in column]).T
        for of, column in zip(trainings, columns, strict=True)
    ]  # a training: [2, items], the sum of an item's values and their number
    whole = statistics.fmean(table[0].sum() / table[1].sum() for table in tables)
    of_trainings, of_items = np.random.default_rng(seed).spawn(2)

    def mean(drawn: NDArray[np.intp], axis: int) -> NDArray[np.float64]:
        """drawn: [resamples, trainings] int, numbers of trainings. Gives [resamples] means over items drawn of them."""
        total = np.zeros((2, len(drawn)))  # the sum of the trainings' means, and their number
        if shared:
            places = of_items.integers(len(names), size=(len(drawn), len(names)))
            totals = np.stack([table.take(places, axis=1).sum(-1) for table in tables])  # [trainings, 2, resamples]
            for slot in drawn.T:
                total += _mean_of(totals[slot, :, np.arange(len(drawn))].T)
        else:
            for slot in drawn.T:
                for number, table in enumerate(tables):
                    chosen = slot == number
                    places = of_items.integers(table.shape[1], size=(chosen.sum(), table.shape[1]))
                    total[:, chosen] += _mean_of(table.take(places, axis=1).sum(-1))
        # Where trainings were asked unlike items, those that were drawn may have none of the items that were.
        return np.divide(total[0], total[1], out=np.full(len(drawn), whole), where=total[1] > 0)

    found = stats.bootstrap(
        # scipy draws from two or more: of one training twice the same.
        (np.arange(len(trainings)) if len(trainings) > 1 else np.zeros(2, dtype=np.intp),),
        mean,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, room // max(map(len, columns))),
        confidence_level=level,
        method="percentile",
        rng=of_trainings,
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def _mean_of(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """[2, n], sums of values and their numbers -> [2, n], means and 1; 0 and 0 where there are no values."""
    some = sums[1] > 0
    return np.stack([np.divide(sums[0], sums[1], out=np.zeros(len(some)), where=some), some])


def caution(trainings: int) -> str:
    """What to say beside an interval over so many trainings; empty where there is nothing to say."""
    if not 1 < trainings < FEW:
        return ""
    return (
        f"With {trainings} trainings an interval is rough and likely too narrow: it draws trainings and items anew, "
        "and so few trainings say little about the chance between them."
    )


def over_seeds(values: Sequence[float]) -> Spread:
    """values: of one figure, a value a seed."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(mean=statistics.fmean(values), std=spread, seeds=list(values))
