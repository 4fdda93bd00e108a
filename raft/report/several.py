"""Several runs on one page: the same methods under other seeds, or other methods beside them."""

from collections.abc import Sequence

from raft.evaluate.statistics import Interval, clustered_interval, mean_std
from raft.report.load import Item, RunData, method_name, ordered
from raft.report.tables import MINUS, Cell, Table, difference_cell, differences, percent, style


def runs_table(runs: Sequence[RunData]) -> Table:
    """Each method's score as the mean over the runs that have it, and its change from the base model of the same
    run."""
    methods = ordered({method: None for run in runs for method in run.scores})
    suites = list(dict.fromkeys(suite for run in runs for suite in run.suites))
    rows = []
    for method in methods:
        having = [run for run in runs if method in run.scores]
        row = [Cell(method_name(method), style=style(method)), Cell(str(len(having)), float(len(having)))]
        rows.append(row + [_score(having, method, suite) for suite in suites])
    for first, second in differences(methods):
        both = [run for run in runs if {first, second} <= run.scores.keys()]
        if both:
            label = f"{method_name(first)} {MINUS} {method_name(second)}"
            row = [Cell(label, style="difference"), Cell(str(len(both)), float(len(both)))]
            rows.append(row + [_difference(both, first, second, suite) for suite in suites])
    names = ", ".join(run.path.resolve().name for run in runs)
    caption = (
        f"Scores in percent over {len(runs)} runs ({names}): the mean over the runs that have the method, and the "
        "standard deviation between them. Differences are in percentage points, of models of the same run; "
        "their 95 % interval is paired by item and counts an item of several runs once."
    )
    header = [Cell(""), Cell("Runs"), *(Cell(suite.capitalize()) for suite in suites)]
    return Table("runs", caption, header, rows)


def _score(runs: Sequence[RunData], method: str, suite: str) -> Cell:
    values = [run.scores[method][suite] for run in runs if suite in run.scores[method]]
    if not values:
        return Cell("")
    spread = mean_std(values)
    return Cell(percent(spread.mean), spread.mean, f"± {percent(spread.std)}" if spread.n > 1 else "")


def _difference(runs: Sequence[RunData], first: str, second: str, suite: str) -> Cell:
    pairs = [pair for run in runs if (pair := run.compared(first, second, suite))]
    if not pairs:
        return Cell("")
    by_item: dict[Item, list[float]] = {}
    for run in runs:
        ours, theirs = run.item_scores(first, suite), run.item_scores(second, suite)
        for item in run.shared(first, second, suite):
            by_item.setdefault(item, []).append(ours[item] - theirs[item])
    interval: Interval | None = clustered_interval([by_item[item] for item in sorted(by_item)]) if by_item else None
    return difference_cell(sum(a - b for a, b in pairs) / len(pairs), interval)
