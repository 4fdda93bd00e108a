"""The tables of a report. Cells carry the text that both formats print, so that HTML and Markdown cannot differ."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from raft.report.estimates import Estimate, Estimates
from raft.report.load import RunData, method_name
from raft.report.numbers import MINUS, distance, percent, points, seconds
from raft.stats.intervals import caution


@dataclass(frozen=True)
class Cell:
    text: str
    value: float | None = None  # the number behind the text, unrounded; the HTML keeps it as data-value
    note: str = ""  # smaller, under the text: an interval
    style: str = ""  # a class of templates/page.css


@dataclass(frozen=True)
class Table:
    name: str
    caption: str
    header: list[Cell]
    rows: list[list[Cell]]  # the first cell of a row is its header

    @property
    def numeric(self) -> list[bool]:
        """Of each column: whether it holds numbers, which are set to the right."""
        return [any(row[i].value is not None for row in self.rows if i < len(row)) for i in range(len(self.header))]


def score_table(found: Estimates) -> Table:
    """Methods by suites: score with its interval (over several runs: with their spread), and what is kept of the base
    model's; under them the differences of methods."""
    runs, several = found.runs, len(found.runs) > 1
    styles, kept = runs[0].styles, [run.retention for run in runs]
    kept_suites = [s for s in found.suites if s != "domain" and any(s in of for run in kept for of in run.values())]
    is_unlike = not several and bool(runs[0].cautions)  # not all models were asked the same
    rows = []
    for method in found.methods:
        row = [Cell(method_name(method), style=f"method {styles[method]}")]
        row += [count_cell(found.runs_with(method))] if several else []
        for suite in found.suites:
            items = len(runs[0].item_scores(method, suite)) if is_unlike else 0
            row.append(_score_cell(found.scores.get((method, suite)), several, items))
        for suite in kept_suites:
            values = [run[method][suite] for run in kept if suite in run.get(method, {})]
            row.append(percent_cell(statistics.fmean(values) if values else None))
        rows.append(row)
    for first, second in found.pairs:
        row = [Cell(f"{method_name(first)} {MINUS} {method_name(second)}", style="difference")]
        row += [count_cell(found.runs_with(first, second))] if several else []
        row += [_difference_cell(found.differences.get((first, second, suite))) for suite in found.suites]
        rows.append(row + [Cell("") for _ in kept_suites])
    n = {} if several else runs[0].n
    header = [Cell(""), *([Cell("Runs")] if several else [])]
    header += [Cell(suite.capitalize(), note=f"{n[suite]:,} items" if suite in n else "") for suite in found.suites]
    header += [Cell(f"{suite.capitalize()} kept", note="of base") for suite in kept_suites]
    about = _of_runs(runs, found.least_runs) if several else _OF_A_RUN
    return Table("runs" if several else "scores", f"{about} {_OF_SCORES}", header, rows)


_OF_A_RUN = (
    "Under each score its 95 % bootstrap interval over the items; the intervals of differences are paired by item."
)
_OF_SCORES = (
    "Scores are in percent, differences in percentage points. Kept: the score relative to the base model's. An "
    "interval without width means that all items scored alike."
)


def _of_runs(runs: list[RunData], least: int) -> str:
    """least: runs behind a difference, of those that have more than one."""
    names = ", ".join(run.path.resolve().name for run in runs)
    about = (
        f"Over {len(runs)} runs ({names}): the mean over the runs that have the method, and the standard deviation "
        "between them. A difference is between models of the same run; its 95 % bootstrap interval is over runs and "
        "items (of a single run: over items), paired by item, and counts an item of several runs once."
    )
    return f"{about} {caution(least)}".strip()


def skill_table(data: RunData) -> Table | None:
    """Suite and skill by methods: scores, and the change from the base model's."""
    methods = [m for m in data.evals if data.evals[m].get("by_skill")]
    counts: dict[tuple[str, str], int] = {}
    for method in reversed(methods):
        counts |= Counter((s["suite"], skill) for s in data.samples(method) if (skill := s.get("skill")) is not None)
    changed = [method for method in methods if method != "base"] if "base" in methods else []
    keys = [(suite, skill) for suite in data.suites for skill in sorted(k for s, k in counts if s == suite)]
    if not methods or not keys:
        return None
    rows, last = [], None
    for suite, skill in keys:
        cells = [Cell(suite if suite != last else "", style="suite"), Cell(skill.replace("_", " "))]
        cells.append(count_cell(counts[suite, skill]))
        values = {method: data.evals[method]["by_skill"].get(suite, {}).get(skill) for method in methods}
        cells += map(percent_cell, values.values())
        for method in changed:
            value, base = values[method], values["base"]
            cells.append(Cell("") if value is None or base is None else Cell(points(value - base), value - base))
        rows.append(cells)
        last = suite
    header = [Cell("Suite"), Cell("Skill"), Cell("Items"), *_method_heads(data, methods)]
    header += _method_heads(data, changed, f" {MINUS} {method_name('base')}")
    caption = "Mean score in percent of each skill" + (", and its change in percentage points." if changed else ".")
    return Table("skills", caption, header, rows)


def warning_table(data: RunData) -> Table | None:
    """What the trainings have warned of, each once."""
    rows = [
        [Cell(method_name(method)), Cell(str(line["step"]), float(line["step"])), Cell(line["text"])]
        for method, training in data.training.items()
        for line in training.warnings
    ]
    header = [Cell("Method"), Cell("Step"), Cell("Warning")]
    return Table("warnings", "What the trainer has warned of, once each.", header, rows) if rows else None


def stage_table(data: RunData) -> Table | None:
    """Seconds per stage, as the run wrote them."""
    stages = data.summary.get("seconds") or {}
    rows = [
        [Cell(str(stage).replace("_", " ")), Cell(seconds(value), float(value))]
        for stage, value in stages.items()
        if isinstance(value, int | float)
    ]
    if not rows:
        return None
    if "total" not in stages:
        total = sum(row[1].value or 0.0 for row in rows)
        rows.append([Cell("all stages", style="total"), Cell(seconds(total), total)])
    return Table("seconds", "Wall clock of each stage.", [Cell("Stage"), Cell("Seconds")], rows)


def distance_table(data: RunData) -> Table | None:
    """Mean relative distance from the base model, over layers and for the other groups of tensors."""
    moved = data.weight_distance.values()
    groups = {
        "Mean over layers": [d.get("mean") for d in moved],
        "Embeddings": [d.get("embeddings") for d in moved],
        "All tensors": [d.get("total") for d in moved],
    }
    rows = [
        [Cell(title), *(Cell("") if v is None else Cell(distance(v), v) for v in values)]
        for title, values in groups.items()
        if any(v is not None for v in values)
    ]
    if not rows:
        return None
    header = [Cell("Relative L2 distance"), *_method_heads(data, data.weight_distance)]
    return Table("distance", "Distance of the weights from the base model.", header, rows)


def settings_table(data: RunData) -> Table | None:
    """Everything that summary.json and config.yaml say about how the run was made."""
    known = {"scores", "n", "seconds", "retention"}
    settings: dict[str, object] = {}
    for key, value in data.summary.items():
        if key not in known:
            _flatten(value, key, settings)
    _flatten(data.config, "config", settings)
    rows = [[Cell(name), Cell(str(value))] for name, value in settings.items()]
    return Table("settings", "Settings, versions and machine.", [Cell("Name"), Cell("Value")], rows) if rows else None


def count_cell(value: int) -> Cell:
    return Cell(f"{value:,}", float(value))


def percent_cell(value: float | None) -> Cell:
    return Cell("") if value is None else Cell(percent(value), value)


def _method_heads(data: RunData, methods: Iterable[str], after: str = "") -> list[Cell]:
    return [Cell(method_name(method) + after, style=f"method {data.styles[method]}") for method in methods]


def _score_cell(score: Estimate | None, several: bool, items: int = 0) -> Cell:
    """items: said where the models were not asked the same."""
    if score is None:
        return Cell("")
    if several:
        return Cell(percent(score.value), score.value, f"± {percent(score.std)}" if score.runs > 1 else "")
    notes = [f"{percent(score.interval.low)} – {percent(score.interval.high)}"] if score.interval else []
    notes += [f"{items:,} items"] if items else []
    return Cell(percent(score.value), score.value, ", ".join(notes))


def _difference_cell(found: Estimate | None) -> Cell:
    if found is None:
        return Cell("")
    note = f"{points(found.interval.low)} to {points(found.interval.high)}" if found.interval else ""
    return Cell(points(found.value), found.value, note)


def _flatten(value: object, name: str, flat: dict[str, object]) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _flatten(item, f"{name}.{key}", flat)
    elif isinstance(value, list | tuple):
        flat[name] = " ".join(map(str, value))
    elif value is not None:
        flat[name] = value
