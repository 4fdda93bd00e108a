"""The report before it has a format: sections of text, tables, figures and samples."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from raft.report import figures, tables
from raft.report.figures import Figure
from raft.report.load import RunData, method_name
from raft.report.samples import Choice, choose
from raft.report.several import runs_table
from raft.report.tables import Table


@dataclass(frozen=True)
class Example:
    """A row on its way through the refinement."""

    id: str
    question: str
    stages: list[tuple[str, str]]  # (what it is, text)
    note: str


@dataclass
class Section:
    """A heading and what stands under it, in this order; empty parts are left out."""

    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    beside: list[Table] = field(default_factory=list)  # small tables that stand next to the figures
    below: list[Table] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    folded: bool = False  # shown on demand

    @property
    def is_empty(self) -> bool:
        return not (self.tables or self.figures or self.beside or self.below or self.choices or self.examples)


@dataclass(frozen=True)
class Document:
    title: str
    facts: list[tuple[str, str]]  # what was run, for the head of the page
    findings: list[str]
    sections: list[Section]


def build(data: RunData, others: Sequence[RunData] = ()) -> Document:
    """The whole report of a run, and its scores beside those of other runs; a section without files behind it is not
    there."""
    sections = [
        Section("Over all runs", tables=[runs_table([data, *others])] if others else []),
        _trade_off(data),
        _scores(data),
        _skills(data),
        _training(data),
        _weights(data),
        _refinement(data),
        _samples(data),
    ]
    sections += [_time(data), _settings(data)]
    return Document(_title(data), _facts(data), _findings(data), [s for s in sections if not s.is_empty])


def _title(data: RunData) -> str:
    return "RAFT against SFT" if {"raft", "sft"} <= set(data.scores) else "RAFT run report"


def _facts(data: RunData) -> list[tuple[str, str]]:
    summary, config = data.summary, data.config
    seconds = [v for k, v in (summary.get("seconds") or {}).items() if k != "total" and isinstance(v, int | float)]
    facts = {
        "Run": data.path.resolve().name,
        "Model": config.get("model") or data.evals.get("base", {}).get("model"),
        "Seed": summary.get("seed", config.get("seed")),
        "Engine": summary.get("engine"),
        "Versions": summary.get("versions"),
        "Machine": summary.get("machine"),
        "Duration": tables.duration(sum(seconds)) if seconds else None,
        "Command": summary.get("command"),
    }
    return [(name, _one_line(value)) for name, value in facts.items() if value not in (None, "", {}, [])]


def _one_line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_one_line(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(value)


def _findings(data: RunData) -> list[str]:
    """What was forgotten and learned, in words, in the same order whoever is ahead."""
    found = [*data.cautions, *_changes(data)]
    for suite in data.suites:
        difference = tables.difference_of(data, "raft", "sft", suite)
        if difference is None:
            continue
        value, interval = difference
        scores = data.scores
        against = f"RAFT {tables.percent(scores['raft'][suite])} %, SFT {tables.percent(scores['sft'][suite])} %"
        sentence = f"{suite.capitalize()}: {against}, a difference of {tables.points(value)} points"
        if interval:
            sentence += f" (95 % interval {tables.points(interval.low)} to {tables.points(interval.high)}"
            sentence += ", which includes 0)" if interval.low <= 0 <= interval.high else ")"
        if kept := [
            f"{method_name(m)} {tables.percent(data.retention[m][suite])} %"
            for m in ("raft", "sft")
            if suite != "domain" and suite in data.retention.get(m, {})
        ]:
            sentence += f". Kept of the base model's score: {', '.join(kept)}"
        found.append(sentence + ".")
    return found


def _changes(data: RunData) -> list[str]:
    """What became of the base model's skills in each trained model: did it forget?"""
    found = []
    for method in (name for name in data.scores if name != "base"):
        parts = []
        for suite in data.suites:
            difference = tables.difference_of(data, method, "base", suite)
            if suite == "domain" or difference is None:
                continue
            value, interval = difference
            part = f"{suite} {tables.points(value)} points"
            if interval:
                part += f" (95 % interval {tables.points(interval.low)} to {tables.points(interval.high)})"
            parts.append(part)
        if parts:
            found.append(f"{method_name(method)} against the base model: {', '.join(parts)}.")
    return found


_MEANING = {
    "domain": "Domain: questions of the kind that was trained.",
    "general": "General: what the base model could do before.",
    "format": "Format: instructions whose obedience a program verifies.",
}


def _trade_off(data: RunData) -> Section:
    return Section("Trade-off", figures=_present(figures.trade_off(data)))


def _scores(data: RunData) -> Section:
    if not data.scores:
        return Section("Scores")
    text = " ".join(_MEANING[suite] for suite in data.suites if suite in _MEANING)
    return Section(
        "Scores", [text] if text else [], tables=[tables.score_table(data)], figures=figures.score_figures(data)
    )


def _skills(data: RunData) -> Section:
    return Section("Skills", tables=_present(tables.skill_table(data)))


def _training(data: RunData) -> Section:
    drawn = figures.losses(data), figures.balance(data), figures.weight_lambda(data)
    every = [*_present(*drawn), *figures.signals(data)]
    return Section("Training", tables=_present(tables.warning_table(data)), figures=every)


def _weights(data: RunData) -> Section:
    drawn = figures.weight_distance(data)
    return Section("Weights", figures=_present(drawn), beside=_present(tables.distance_table(data)))


def _refinement(data: RunData) -> Section:
    return Section(
        "Refinement",
        figures=_present(figures.similarities(data)),
        beside=_present(tables.refinement_table(data)),
        below=[*_present(tables.reason_table(data)), *tables.diagnostics_tables(data)],
        examples=_examples(data),
    )


def _samples(data: RunData) -> Section:
    text = (
        "Answers of the models to the same test items, next to each other. Shown are the first cases of each skill in "
        "turn, not chosen by hand. An answer counts as right from a score of 0.5 on."
    )
    return Section("Samples", [text], choices=choose(data))


def _time(data: RunData) -> Section:
    drawn = figures.stages(data), figures.step_time(data)
    return Section("Time", figures=_present(*drawn), beside=_present(tables.stage_table(data)))


def _settings(data: RunData) -> Section:
    return Section("Settings", tables=_present(tables.settings_table(data)), folded=True)


def _examples(data: RunData, limit: int = 5) -> list[Example]:
    """Rows spread over the whole file; one of them was not kept, if there is such a row."""
    kept = [row for row in data.fused if row.get("kept")]
    dropped = [row for row in data.fused if not row.get("kept")]
    rows = _spread(kept, limit - bool(dropped)) + _spread(dropped, 1 if kept else limit)
    return [_example(row) for row in rows]


def _example(row: dict[str, Any]) -> Example:
    names = (("answer", "Raw answer"), ("rewritten", "Rewritten"), ("fused_answer", "Fused answer"))
    stages = [(name, str(row[key])) for key, name in names if row.get(key)]
    notes = ["kept" if row.get("kept") else "not kept: the raw answer is used"]
    if isinstance(row.get("similarity"), int | float):
        notes.insert(0, f"similarity {row['similarity']:.3f}")
    if row.get("judge_scores"):
        notes.append("judges " + ", ".join(f"{score:.2f}" for score in row["judge_scores"]))
    return Example(str(row.get("id", "")), str(row.get("question", "")), stages, ", ".join(notes))


def _spread(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def _present(*values: Any) -> list[Any]:
    return [value for value in values if value is not None]
