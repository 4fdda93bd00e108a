"""The tables of a report. Cells carry the text that both formats print, so that HTML and Markdown cannot differ."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from raft.evaluate.statistics import Interval, bootstrap_interval, paired_interval
from raft.refine.floor import REASONS
from raft.report.load import RunData, method_name

MINUS = "−"  # as wide as a plus, so that signed columns align


@dataclass(frozen=True)
class Cell:
    text: str
    value: float | None = None  # the number behind the text, unrounded; the HTML keeps it as data-value
    note: str = ""  # smaller, under the text: an interval
    style: str = ""  # a class of templates/page.css

    @property
    def is_number(self) -> bool:
        return self.value is not None


@dataclass(frozen=True)
class Table:
    name: str
    caption: str
    header: list[Cell]
    rows: list[list[Cell]]  # the first cell of a row is its header


def percent(value: float, digits: int = 1) -> str:
    """0.585 as 58.5: a share in percent, the sign of which stands in the header or beside it."""
    return f"{100 * value:.{digits}f}"


def points(value: float) -> str:
    """0.2 as +20.0: a difference of shares in percentage points."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def number(value: Any) -> str:
    """A number of unknown size; fractions with three digits, so that a column aligns."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.3f}".replace("-", MINUS)


def seconds(value: float) -> str:
    return f"{value:,.1f}"


def duration(value: float) -> str:
    """4 s, 2 min 5 s, 3 h 20 min."""
    whole = round(value)
    if whole < 60:
        return f"{value:.1f} s" if value < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def distance(value: float) -> str:
    """A relative distance of weights: 0.0524 as in the paper, 9.5e-05 where four decimals would hide it."""
    return f"{value:.4f}" if value >= 0.001 or value == 0 else f"{value:.1e}"


def interval_of(data: RunData, method: str, suite: str) -> Interval | None:
    """95 % interval of a score over the items, or None where the single items are not known."""
    values = data.item_scores(method, suite)
    return bootstrap_interval(list(values.values())) if values else None


def difference_of(data: RunData, first: str, second: str, suite: str) -> tuple[float, Interval | None] | None:
    """Score of `first` minus that of `second`, with its paired 95 % interval over the items that both answered."""
    pair = data.compared(first, second, suite)
    if pair is None:
        return None
    ours, theirs = data.item_scores(first, suite), data.item_scores(second, suite)
    shared = data.shared(first, second, suite)
    interval = paired_interval([ours[i] for i in shared], [theirs[i] for i in shared]) if shared else None
    return pair[0] - pair[1], interval


def score_table(data: RunData) -> Table:
    """Methods by suites: score, interval, retention; and what RAFT gains or loses against SFT."""
    suites, kept = data.suites, data.retention
    kept_suites = [s for s in suites if s != "domain" and any(s in values for values in kept.values())]
    header = [Cell(""), *(_suite_head(data, suite) for suite in suites)]
    header += [Cell(f"{suite.capitalize()} kept", note="of base") for suite in kept_suites]
    rows, counted = [], bool(data.cautions)
    for method, scores in data.scores.items():
        row = [Cell(method_name(method), style=style(method))]
        for suite in suites:
            items = len(data.item_scores(method, suite)) if counted else 0
            row.append(_score_cell(scores.get(suite), interval_of(data, method, suite), items))
        for suite in kept_suites:
            value = kept.get(method, {}).get(suite)
            row.append(Cell("") if value is None else Cell(percent(value), value))
        rows.append(row)
    for first, second in differences(data.scores):
        cells = [
            Cell("") if d is None else difference_cell(*d)
            for d in (difference_of(data, first, second, suite) for suite in suites)
        ]
        label = f"{method_name(first)} {MINUS} {method_name(second)}"
        rows.append([Cell(label, style="difference"), *cells, *(Cell("") for _ in kept_suites)])
    caption = (
        "Scores in percent. Under each score its 95 % bootstrap interval over the items; differences are in "
        "percentage points, their intervals are paired by item. Kept: the score relative to the base model's. An "
        "interval without width means that all items scored alike."
    )
    return Table("scores", caption, header, rows)


def differences(methods: Collection[str]) -> list[tuple[str, str]]:
    """Which models are compared in a row of their own: every trained one with the base model, and RAFT with SFT."""
    trained = [method for method in methods if method != "base"]
    pairs = [(method, "base") for method in trained] if "base" in methods else []
    return [*pairs, *([("raft", "sft")] if {"raft", "sft"} <= set(trained) else [])]


def skill_table(data: RunData) -> Table | None:
    """Suite and skill by methods: scores, and the change from the base model's."""
    methods = [m for m in data.evals if data.evals[m].get("by_skill")]
    counts: dict[tuple[str, str], int] = {}
    for method in reversed(methods):
        of_method: dict[tuple[str, str], int] = {}
        for sample in data.evals[method].get("samples", ()):
            if sample.get("skill") is not None:
                key = (sample["suite"], sample["skill"])
                of_method[key] = of_method.get(key, 0) + 1
        counts |= of_method
    changed = [method for method in methods if method != "base"] if "base" in methods else []
    keys = [(suite, skill) for suite in data.suites for skill in sorted(k for s, k in counts if s == suite)]
    if not methods or not keys:
        return None
    rows, last = [], None
    for suite, skill in keys:
        cells = [Cell(suite if suite != last else "", style="suite"), Cell(skill.replace("_", " "))]
        cells.append(_count(counts[suite, skill]))
        values = {method: data.evals[method]["by_skill"].get(suite, {}).get(skill) for method in methods}
        cells += [Cell("") if value is None else Cell(percent(value), value) for value in values.values()]
        for method in changed:
            value, base = values[method], values["base"]
            cells.append(Cell("") if value is None or base is None else Cell(points(value - base), value - base))
        rows.append(cells)
        last = suite
    header = [Cell("Suite"), Cell("Skill"), Cell("Items"), *(Cell(method_name(m), style=style(m)) for m in methods)]
    header += [Cell(f"{method_name(m)} {MINUS} {method_name('base')}", style=style(m)) for m in changed]
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
    stages: Mapping[str, Any] = data.summary.get("seconds") or {}
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


def refinement_table(data: RunData) -> Table | None:
    """How many rows each step of the refinement let through."""
    total = len(data.fused)
    if not total:
        return None
    kept = sum(bool(row.get("kept")) for row in data.fused)
    fused = sum(row.get("fused_answer") not in (None, row.get("answer")) for row in data.fused)
    similarities = [row["similarity"] for row in data.fused if isinstance(row.get("similarity"), int | float)]
    judged = [[score for score in row.get("judge_scores") or () if score is not None] for row in data.fused]
    scores = [_mean(values) for values in judged if values]
    rows = [_row_of("Rows", total), _row_of("Kept: good enough, and fused", kept, total)]
    rows.append(_row_of("Answer changed by the refinement", fused, total))
    rows.append(_row_of("Failed (the raw answer is used)", len(data.failed), total))
    if similarities:
        mean = _mean(similarities)
        rows.append([Cell("Mean similarity of rewriting and answer"), Cell(f"{mean:.3f}", mean), Cell("")])
    if scores:
        mean = _mean(scores)
        rows.append([Cell("Mean judge score of fused rows"), Cell(f"{mean:.3f}", mean), Cell("")])
    return Table("refinement", "What the refinement did with the rows.", [Cell(""), Cell("Rows"), Cell("Share")], rows)


def reason_table(data: RunData) -> Table | None:
    """How many rewritings and fused candidates were not used, and why: the reasons that there were, by their count."""
    found = data.diagnostics.get("reasons")
    stages: dict[str, Mapping[str, Any]] = found if isinstance(found, dict) else {}
    columns = {stage: counts for stage, counts in stages.items() if isinstance(counts, Mapping) and counts.get("texts")}
    if not columns:
        return None
    names = list(dict.fromkeys(name for counts in columns.values() for name in counts if name not in _TEXTS))
    totals = {name: sum(counts.get(name, 0) for counts in columns.values()) for name in names}
    shown = [*_TEXTS, *sorted((name for name in names if totals[name]), key=lambda name: -totals[name])]
    rows = []
    for name in shown:
        row = [Cell((_TEXTS | REASONS).get(name, name))]
        for counts in columns.values():
            count = counts.get(name, 0)
            share = "" if name == "texts" else f"{percent(count / counts['texts'])} %"
            row.append(Cell(f"{count:,}", float(count), share))
        rows.append(row)
    header = [Cell("What speaks against a text"), *(Cell(_STAGES.get(stage, stage)) for stage in columns)]
    caption = (
        "Texts that did not take the place of a reference answer, and why; one text may have several reasons. A row "
        "without a text that passes keeps its reference."
    )
    return Table("reasons", caption, header, rows)


_STAGES = {"rewrite": "Rewritings", "fuse": "Fused candidates"}
_TEXTS = {"texts": "Texts", "rejected": "Not used, for one reason or more"}


def diagnostics_tables(data: RunData) -> list[Table]:
    """diagnostics.json as it is, whatever it holds: a table of summaries (n, mean, ...), and one for each other shape.

    Counts of rows stand in `refinement_table` already, if there is one, and the reasons in `reason_table`.
    """
    measures: dict[str, dict[str, Any]] = {}
    _collect({name: value for name, value in data.diagnostics.items() if name != "reasons"}, (), measures)
    if data.fused:
        measures = {name: values for name, values in measures.items() if name not in _COUNTED}
    families: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for name, values in measures.items():
        families.setdefault(("n",) if "n" in values else tuple(values), {})[name] = values
    tables = []
    for i, (family, rows_of) in enumerate(families.items()):
        columns = list(dict.fromkeys(column for values in rows_of.values() for column in values))
        rows = [
            [Cell(_measure_name(name)), *(_any_cell(values[c]) if c in values else Cell("") for c in columns)]
            for name, values in rows_of.items()
        ]
        header = [Cell("Measure"), *(Cell(column.replace("_", " ")) for column in columns)]
        caption = "Refined answers against raw ones"
        caption += ", over the kept rows; p05 to p95 are quantiles." if family == ("n",) else "."
        tables.append(Table(f"diagnostics-{i + 1}", caption, header, rows))
    return tables


_COUNTED = ("rows", "kept", "kept_share", "failed")
# What raft/refine/diagnostics.py measures, in words; a measure without words here is shown by its name in the file.
_MEASURES = {
    "similarity": "Cosine, answer to rewriting (all rows)",
    "rounds": "Rounds of fusion",
    "embedding / raw_refined": "Cosine, raw to refined",
    "embedding / raw_own": "Cosine, raw to rewriting",
    "embedding / own_refined": "Cosine, rewriting to refined",
    "overlap / 1gram_f1": "Words in common (1-gram F1)",
    "overlap / 2gram_f1": "Word pairs in common (2-gram F1)",
    "length / raw_words": "Words, raw",
    "length / refined_words": "Words, refined",
    "length / shift_words": "Words added",
    "length / ratio": "Words, refined over raw",
    "nll / raw": "Loss of the base model on raw, nats a token",
    "nll / refined": "Loss of the base model on refined",
    "nll / shift": "Loss, refined less raw",
    "characters / distance": "Distance of the character classes, 0 to 1",
}


def _measure_name(name: str) -> str:
    group, _, rest = name.partition(" / ")
    if group == "judges" and rest:
        return f"Score of judge {rest}"
    if group == "characters" and name not in _MEASURES:
        return f"Share of characters, {rest}"
    return _MEASURES.get(name, name.replace("_", " "))


def distance_table(data: RunData) -> Table | None:
    """Mean relative distance from the base model, over layers and for the other groups of tensors."""
    groups = [g for g in ("mean", "embeddings", "total") if any(g in d for d in data.weight_distance.values())]
    if not groups:
        return None
    titles = {"mean": "Mean over layers", "embeddings": "Embeddings", "total": "All tensors"}
    rows = []
    for group in groups:
        values = [d.get(group) for d in data.weight_distance.values()]
        rows.append([Cell(titles[group]), *(Cell("") if v is None else Cell(distance(v), v) for v in values)])
    header = [Cell("Relative L2 distance"), *(Cell(method_name(m), style=style(m)) for m in data.weight_distance)]
    return Table("distance", "Distance of the weights from the base model.", header, rows)


def settings_table(data: RunData) -> Table | None:
    """Everything that summary.json and config.yaml say about how the run was made."""
    known = {"scores", "n", "seconds", "retention"}
    settings: dict[str, Any] = {}
    for key, value in data.summary.items():
        if key not in known:
            _flatten(value, key, settings)
    _flatten(data.config, "config", settings)
    rows = [[Cell(name), Cell(str(value))] for name, value in settings.items()]
    return Table("settings", "Settings, versions and machine.", [Cell("Name"), Cell("Value")], rows) if rows else None


def _suite_head(data: RunData, suite: str) -> Cell:
    n = data.n.get(suite)
    return Cell(suite.capitalize(), note="" if n is None else f"{n:,} items")


def _score_cell(value: float | None, interval: Interval | None, items: int = 0) -> Cell:
    """items: said where the models were not asked the same."""
    if value is None:
        return Cell("")
    note = f"{percent(interval.low)} – {percent(interval.high)}" if interval else ""
    if items:
        note = f"{note}, {items:,} items".removeprefix(", ")
    return Cell(percent(value), value, note)


def difference_cell(value: float, interval: Interval | None) -> Cell:
    note = f"{points(interval.low)} to {points(interval.high)}" if interval else ""
    return Cell(points(value), value, note)


def _count(value: int) -> Cell:
    return Cell(f"{value:,}", float(value))


def _row_of(name: str, count: int, total: int | None = None) -> list[Cell]:
    share = Cell("") if total is None else Cell(f"{percent(count / total)} %", count / total)
    return [Cell(name), _count(count), share]


def _any_cell(value: Any) -> Cell:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(number(value), float(value) if is_number else None)


def _collect(value: Mapping[str, Any], path: tuple[str, ...], groups: dict[str, dict[str, Any]]) -> None:
    """Nested objects to rows: the innermost keys become columns, the path to them the row's name."""
    plain = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            _collect(item, (*path, str(key)), groups)
        elif isinstance(item, list):
            plain[str(key)] = f"{len(item)} values"
        elif item is not None:
            plain[str(key)] = item
    if not plain:
        return
    if path:
        groups[" / ".join(path)] = plain
    else:  # numbers at the top have no name but their key
        groups.update({key: {"value": item} for key, item in plain.items()})


def _flatten(value: Any, name: str, flat: dict[str, Any]) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _flatten(item, f"{name}.{key}", flat)
    elif isinstance(value, list | tuple):
        flat[name] = " ".join(map(str, value))
    elif value is not None:
        flat[name] = value


def style(method: str) -> str:
    return f"method {method if method in ('base', 'sft', 'raft') else 'other'}"


def _mean(values: Iterable[float]) -> float:
    kept = list(values)
    return sum(kept) / len(kept)
