"""Error bars: percentile bootstrap over items (paired for a difference of two methods), mean and spread over seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
_BLOCK = 1 << 22  # indices drawn at a time: bounds the memory at 32 MiB whatever the number of items


class Interval(NamedTuple):
    low: float
    high: float


class Spread(NamedTuple):
    mean: float
    std: float  # of the sample (n - 1); 0 for a single value
    n: int


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Confidence interval of the mean of `values`, one value per item."""
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0:
        raise ValueError(f"bootstrap_interval: expected at least one value per item, got shape {data.shape}")
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // data.size)
    means = []
    for start in range(0, resamples, rows):
        drawn = rng.integers(data.size, size=(min(rows, resamples - start), data.size))
        means.append(data[drawn].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def paired_interval(
    first: Sequence[float], second: Sequence[float], *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Confidence interval of mean(first) - mean(second); value i of both belongs to item i: pairs are drawn."""
    if len(first) != len(second):
        raise ValueError(f"paired_interval: {len(first)} and {len(second)} values, expected one pair per item")
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return bootstrap_interval(differences.tolist(), level=level, resamples=resamples, seed=seed)


def mean_std(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation, for example over seeds."""
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("mean_std: expected at least one value")
    return Spread(float(data.mean()), float(data.std(ddof=1)) if data.size > 1 else 0.0, int(data.size))
