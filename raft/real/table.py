"""The results in results/real/*.json: mean and spread of each method over the seeds, and RAFT minus the others."""

from collections.abc import Mapping, Sequence

from raft.errors import InputError
from raft.real.results import ItemValues, Table
from raft.stats.intervals import Training, over_seeds
from raft.stats.tests import Comparison, compare, differences


def table(
    evaluations: Mapping[str, Sequence[ItemValues]],
    *,
    model: str,
    data: str,
    commit: str | None,
    command: str,
) -> Table:
    """evaluations: method -> its values, one `ItemValues` a seed.

    "tests" has RAFT beside every other trained method. A pair is one item under both methods and one seed. All seeds
    have the same items, so the pairs of an item are not independent: their signs are flipped (p) and they are drawn
    (ci95) together. The interval also draws the seeds. "n" is the mean over the seeds if they differ.
    InputError if the methods have different numbers of seeds or different items.
    """
    seeds = {name: len(results) for name, results in evaluations.items()}
    if not seeds or min(seeds.values()) < 1 or len(set(seeds.values())) > 1:
        raise InputError(f"table: expected as many seeds of every method and at least one, found {seeds}")
    methods = {
        name: {
            metric: over_seeds([result["metrics"][metric] for result in results]) for metric in results[0]["metrics"]
        }
        for name, results in evaluations.items()
    }
    others = [name for name in evaluations if name not in ("base", "raft")] if "raft" in evaluations else []
    tests = {f"raft_vs_{name}": _compare(evaluations["raft"], evaluations[name]) for name in others}
    counts = [result["n"] for result in next(iter(evaluations.values()))]
    n = {metric: round(sum(count[metric] for count in counts) / len(counts)) for metric in counts[0]}
    return {
        "methods": methods,
        "tests": tests,
        "n": n,
        "model": model,
        "data": data,
        "commit": commit,
        "command": command,
    }


def _compare(first: Sequence[ItemValues], second: Sequence[ItemValues]) -> dict[str, Comparison]:
    """Metric -> first minus second."""
    by_metric: dict[str, list[Training]] = {}  # metric -> the differences of each seed
    for seed, (one, other) in enumerate(zip(first, second, strict=True)):
        for metric, by_item in one["values"].items():
            try:
                found = differences(by_item, other["values"].get(metric, {}))
            except InputError as error:
                raise InputError(f"table: {metric}, seed number {seed}: {error}") from error
            by_metric.setdefault(metric, []).append(found)
    return {metric: compare(found) for metric, found in by_metric.items()}
