"""Error bars: percentile bootstrap over items (paired for two methods), mean and spread over seeds; a paired test."""

from collections.abc import Sequence
from typing import Any, NamedTuple

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
    return clustered_interval(data[:, None].tolist(), level=level, resamples=resamples, seed=seed)


def paired_interval(
    first: Sequence[float], second: Sequence[float], *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Confidence interval of mean(first) - mean(second); value i of both belongs to item i: pairs are drawn."""
    if len(first) != len(second):
        raise ValueError(f"paired_interval: {len(first)} and {len(second)} values, expected one pair per item")
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return bootstrap_interval(differences.tolist(), level=level, resamples=resamples, seed=seed)


def clustered_interval(
    clusters: Sequence[Sequence[float]], *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Confidence interval of the mean of all values, where those of a cluster belong together and are drawn as a whole.

    A cluster is what one item gave: under several seeds, or in several parts. One value each: `bootstrap_interval`.
    """
    sums, sizes = _sums(clusters, "clustered_interval")
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // sums.size)
    means = []
    for start in range(0, resamples, rows):
        drawn = rng.integers(sums.size, size=(min(rows, resamples - start), sums.size))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def sign_flip_p(differences: Sequence[Sequence[float]], *, flips: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p of paired differences by random sign flips: were the methods alike, any item might be turned round.

    All differences of an item (a cluster) turn together. At least 1 / (flips + 1); 1 where nothing differs.
    """
    sums, _ = _sums(differences, "sign_flip_p")
    rng = np.random.default_rng(seed)
    observed = abs(sums.sum())
    rows = max(1, _BLOCK // sums.size)
    reached = 0
    for start in range(0, flips, rows):
        signs = rng.integers(2, size=(min(rows, flips - start), sums.size)) * 2.0 - 1.0
        # Sums of the same numbers in another order differ by rounding.
        reached += int((np.abs(signs @ sums) >= observed - 1e-9 * max(1.0, observed)).sum())
    return (reached + 1) / (flips + 1)


def _sums(clusters: Sequence[Sequence[float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """[n] sums and [n] sizes of the clusters, float64."""
    if not clusters or any(not len(cluster) for cluster in clusters):
        raise ValueError(f"{name}: expected at least one item with at least one value each, got {len(clusters)} items")
    return np.array([np.sum(cluster) for cluster in clusters], dtype=np.float64), np.array(
        [float(len(c)) for c in clusters]
    )


def mean_std(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation, for example over seeds."""
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("mean_std: expected at least one value")
    return Spread(float(data.mean()), float(data.std(ddof=1)) if data.size > 1 else 0.0, int(data.size))


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """{"mean", "std", "seeds"}: what a record says of one figure over several seeds."""
    spread = mean_std(values)
    return {"mean": spread.mean, "std": spread.std, "seeds": list(values)}
