"""The results in results/real/*.json: mean and spread of each method over the seeds, and RAFT minus the others."""

from collections.abc import Mapping, Sequence
from typing import Any

from raft.errors import InputError
from raft.stats.intervals import over_seeds
from raft.stats.tests import compare, differences


def table(
    evaluations: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    model: str,
    data: str,
    commit: str | None,
    command: str,
) -> dict[str, Any]:
    """Returns {"methods", "tests", "n", "model", "data", "commit", "command"}.

    evaluations: method -> one {"metrics", "n", "values"} (`raft.real.scores`) per seed.
    "methods": method -> metric -> {"mean", "std", "seeds"}.
    "tests": {"raft_vs_sft": metric -> {"p", "difference", "ci95"}}, and the same for every other trained method. A
    pair is one item under both methods and one seed. All seeds have the same items, so the pairs of an item are not
    independent: their signs are flipped (p) and they are drawn (ci95) together. The interval also draws the seeds.
    "n": metric -> number of values of one seed (the mean over the seeds if they differ).
    InputError if the methods have different numbers of seeds or different items.
    """
    seeds = {name: len(results) for name, results in evaluations.items()}
    if not seeds or min(seeds.values()) < 1 or len(set(seeds.values())) > 1:
        raise InputError(f"table: expected as many seeds of every method and at least one, found {seeds}")
    methods: dict[str, Any] = {}
    for name, results in evaluations.items():
        methods[name] = {}
        for metric in results[0]["metrics"]:
            methods[name][metric] = over_seeds([result["metrics"][metric] for result in results])
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


def _compare(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Metric -> {"p", "difference", "ci95"} of first minus second."""
    by_metric: dict[str, list[dict]] = {}  # metric -> the differences of each seed
    for seed, (one, other) in enumerate(zip(first, second, strict=True)):
        for metric, by_item in one["values"].items():
            try:
                found = differences(by_item, other["values"].get(metric, {}))
            except InputError as error:
                raise InputError(f"table: {metric}, seed number {seed}: {error}") from error
            by_metric.setdefault(metric, []).append(found)
    return {metric: compare(found) for metric, found in by_metric.items()}
