"""Scores of any number of methods over any number of runs, and their differences, each with its 95 % interval."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from raft.report.load import RunData, ordered
from raft.stats.intervals import Interval, Training, interval, over_seeds
from raft.stats.tests import differences


@dataclass(frozen=True)
class Estimate:
    """A score in [0, 1], or a difference of two in [-1, 1]."""

    value: float  # the mean over the runs
    interval: Interval | None  # 95 %, over runs and items; None where a run's scores of single items are not known
    std: float  # between the runs; 0 for a single one
    runs: int


@dataclass(frozen=True)
class Estimates:
    runs: list[RunData]  # the first is the one that the page is about
    methods: list[str]
    suites: list[str]
    scores: dict[tuple[str, str], Estimate] = field(default_factory=dict)  # (method, suite)
    differences: dict[tuple[str, str, str], Estimate] = field(default_factory=dict)
    """(first, second, suite): the score of the first less that of the second, of the same run and paired by item."""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every trained method with the base model, and RAFT with every other trained one, where a run has both."""
        trained = [method for method in self.methods if method != "base"]
        pairs = [(method, "base") for method in trained] + [("raft", method) for method in trained if method != "raft"]
        return [pair for pair in pairs if self.runs_with(*pair)]

    @property
    def least_runs(self) -> int:
        """Of the runs behind a difference, the fewest that are more than one; 1 where all are of single runs."""
        return min((each.runs for each in self.differences.values() if each.runs > 1), default=1)

    def runs_with(self, *methods: str) -> int:
        return sum(set(methods) <= run.scores.keys() for run in self.runs)


def estimate(runs: Sequence[RunData]) -> Estimates:
    methods = ordered([method for run in runs for method in run.scores])
    suites = list(dict.fromkeys(suite for run in runs for suite in run.suites))
    beside = tuple(method for run in runs[1:] for method in run.methods) or runs[0].beside
    found = Estimates([replace(runs[0], beside=beside), *runs[1:]], methods, suites)
    for suite in suites:
        for method in methods:
            if score := _score(runs, method, suite):
                found.scores[method, suite] = score
        for first, second in found.pairs:
            if difference := _difference(runs, first, second, suite):
                found.differences[first, second, suite] = difference
    return found


def _score(runs: Sequence[RunData], method: str, suite: str) -> Estimate | None:
    having = [run for run in runs if suite in run.scores.get(method, {})]
    items = [{item: [value] for item, value in run.item_scores(method, suite).items()} for run in having]
    return _over([run.scores[method][suite] for run in having], items)


def _difference(runs: Sequence[RunData], first: str, second: str, suite: str) -> Estimate | None:
    found, items = [], []
    for run in runs:
        if (pair := run.compared(first, second, suite)) is None:
            continue
        found.append(pair[0] - pair[1])
        ours, theirs = run.item_scores(first, suite), run.item_scores(second, suite)
        shared = run.shared(first, second, suite)
        items.append(differences({i: [ours[i]] for i in shared}, {i: [theirs[i]] for i in shared}))
    return _over(found, items)


def _over(values: list[float], items: Sequence[Training]) -> Estimate | None:
    """items: a dict a run, empty where the scores of its items are not known."""
    if not values:
        return None
    spread = over_seeds(values)
    return Estimate(spread["mean"], interval(items) if all(items) else None, spread["std"], len(values))
