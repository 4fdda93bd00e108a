"""The figures of results/real/*.json: means and spread over seeds of each method, and RAFT against SFT item by item."""

from collections.abc import Mapping, Sequence
from typing import Any

from raft.errors import InputError
from raft.evaluate.statistics import clustered_interval, over_seeds, sign_flip_p
from raft.real.scores import Values

COMPARED = ("raft", "sft")


def table(
    evaluations: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    model: str,
    data: str,
    commit: str | None,
    command: str,
) -> dict[str, Any]:
    """{"methods", "tests", "n", "model", "data", "commit", "command"} of the evaluations
    of each method, a seed after the other: {"metrics", "n", "values"} as `raft.real.scores` gives them.

    "methods": method -> metric -> {"mean", "std", "seeds"}.
    "tests": {"raft_vs_sft": metric -> {"p", "difference", "ci95"}}. A pair is an item under both methods and a seed;
    the pairs of an item under several seeds are drawn together, for they are no new items.
    "n": metric -> values of one seed (the mean over the seeds where they differ).
    InputError where the methods have unlike numbers of seeds or were asked different items.
    """
    seeds = {name: len(results) for name, results in evaluations.items()}
    if not seeds or min(seeds.values()) < 1 or len(set(seeds.values())) > 1:
        raise InputError(f"table: expected as many seeds of every method and at least one, found {seeds}")
    methods: dict[str, Any] = {}
    for name, results in evaluations.items():
        methods[name] = {}
        for metric in results[0]["metrics"]:
            methods[name][metric] = over_seeds([result["metrics"][metric] for result in results])
    first, second = COMPARED
    tests = {}
    if first in evaluations and second in evaluations:
        tests[f"{first}_vs_{second}"] = _compare(evaluations[first], evaluations[second])
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
    """Metric -> the difference first - second over all pairs, its 95 % interval, and the p of no difference."""
    differences: dict[str, Values] = {}
    for seed, (one, other) in enumerate(zip(first, second, strict=True)):
        mine, theirs = one["values"], other["values"]
        for metric, by_item in mine.items():
            if by_item.keys() != theirs.get(metric, {}).keys():
                raise InputError(f"table: {metric}, seed number {seed}: the two methods were asked different items")
            for item, found in by_item.items():
                pairs = zip(found, theirs[metric][item], strict=True)
                differences.setdefault(metric, {}).setdefault(item, []).extend(a - b for a, b in pairs)
    tests = {}
    for metric, by_item in differences.items():
        clusters = list(by_item.values())
        flat = [difference for cluster in clusters for difference in cluster]
        tests[metric] = {
            "p": sign_flip_p(clusters),
            "difference": sum(flat) / len(flat),
            "ci95": list(clustered_interval(clusters)),
        }
    return tests
