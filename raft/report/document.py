"""The report before it has a format: sections of text, tables, figures and samples."""

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field

from raft.refine.lines import FusedRow
from raft.report import figures, refinement, tables
from raft.report.estimates import Estimate, Estimates, estimate
from raft.report.figures import Figure
from raft.report.load import RunData, method_name
from raft.report.numbers import duration, points
from raft.report.samples import Choice, choose
from raft.report.tables import Table
from raft.stats.intervals import caution


@dataclass(frozen=True)
class RowExample:
    """A row on its way through the refinement."""

    id: str
    question: str
    stages: list[tuple[str, str]]  # (what it is, text)
    note: str


# A list: drawings, and small tables, that stand side by side.
Part = str | Table | Choice | RowExample | list[Figure | Table]


@dataclass
class Section:
    """A heading and what stands under it."""

    title: str
    given: InitVar[Sequence[Part | None]]  # of which those that are None or empty are left out
    folded: bool = False  # shown on demand
    parts: list[Part] = field(init=False)

    def __post_init__(self, given: Sequence[Part | None]) -> None:
        self.parts = [part for part in given if part]

    @property
    def is_empty(self) -> bool:
        return all(isinstance(part, str) for part in self.parts)


@dataclass(frozen=True)
class Document:
    title: str
    facts: list[tuple[str, str]]  # what was run, for the head of the page
    findings: list[str]
    sections: list[Section]
    styles: dict[str, str] = field(default_factory=dict)  # method -> name of its colour and marker


def build(data: RunData, others: Sequence[RunData] = ()) -> Document:
    """The whole report of a run, and its scores over other runs too; a section without files behind it is not there."""
    of_runs = estimate([data, *others])
    data = of_runs.runs[0]
    of_run = estimate([data]) if others else of_runs
    sections = [
        _scores("Over all runs", of_runs, "runs") if others else Section("", []),
        Section("Trade-off", [_side_by_side(figures.trade_off(data))]),
        _scores("Scores", of_run, "scores"),
        Section("Skills", [tables.skill_table(data)]),
        Section("Training", [tables.warning_table(data), _training(data)]),
        Section("Weights", [_side_by_side(figures.weight_distance(data), tables.distance_table(data))]),
        Section("Refinement", _refinement(data)),
        Section("Samples", [_ABOUT_SAMPLES, *choose(data)]),
        Section("Time", [_side_by_side(figures.stages(data), figures.step_time(data), tables.stage_table(data))]),
        Section("Settings", [tables.settings_table(data)], folded=True),
    ]
    found = [section for section in sections if not section.is_empty]
    return Document(_title(of_runs), _facts(data), _findings(data, of_runs), found, data.styles)


def _title(found: Estimates) -> str:
    against = [method_name(method) for method in found.methods if method not in ("base", "raft")]
    return f"RAFT against {_listed(against)}" if "raft" in found.methods and against else "RAFT run report"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _facts(data: RunData) -> list[tuple[str, str]]:
    summary, config = data.summary, data.config
    seconds = [v for k, v in (summary.get("seconds") or {}).items() if k != "total" and isinstance(v, int | float)]
    base = data.evals.get("base")
    facts: dict[str, object] = {
        "Run": data.path.resolve().name,
        "Model": config.get("model") or (base and base.get("model")),
        "Seed": summary.get("seed", config.get("seed")),
        "Engine": summary.get("engine"),
        "Versions": summary.get("versions"),
        "Machine": summary.get("machine"),
        "Duration": duration(sum(seconds)) if seconds else None,
        "Command": summary.get("command"),
    }
    return [(name, _one_line(value)) for name, value in facts.items() if value not in (None, "", {}, [])]


def _one_line(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_one_line(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(value)


def _findings(data: RunData, found: Estimates) -> list[str]:
    """What was forgotten and learned, in words, in the same order whoever is ahead: a sentence a pair of methods."""
    runs = len(found.runs)
    told = [*data.cautions, *([f"Over {runs} runs. {caution(found.least_runs)}".strip()] if runs > 1 else [])]
    for first, second in found.pairs:
        # The base model has not learned the domain: of it nothing can be forgotten.
        suites = [suite for suite in found.suites if second != "base" or suite != "domain"]
        changes = {suite: found.differences.get((first, second, suite)) for suite in suites}
        if parts := [f"{suite} {_change(change)}" for suite, change in changes.items() if change]:
            against = "the base model" if second == "base" else method_name(second)
            told.append(f"{method_name(first)} against {against}: {', '.join(parts)}.")
    return told


def _change(difference: Estimate) -> str:
    text = f"{points(difference.value)} points"
    if difference.interval:
        low, high = difference.interval
        text += f" (95 % interval {points(low)} to {points(high)}{', which includes 0' if low <= 0 <= high else ''})"
    return text


_MEANING = {
    "domain": "Domain: questions of the kind that was trained.",
    "general": "General: what the base model could do before.",
    "format": "Format: instructions whose obedience a program verifies.",
}


_ABOUT_SAMPLES = (
    "Answers of the models to the same test items, next to each other. Shown are the first cases of each skill in "
    "turn, not chosen by hand. An answer counts as right from a score of 0.5 on."
)


def _scores(title: str, found: Estimates, name: str) -> Section:
    """name: of the table and of the drawings' files."""
    if not found.methods:
        return Section(title, [])
    about = " ".join(_MEANING[suite] for suite in found.suites if suite in _MEANING)
    return Section(title, [about, tables.score_table(found), [*figures.score_figures(found, name)]])


def _training(data: RunData) -> list[Figure | Table]:
    return [*_side_by_side(figures.losses(data), figures.balance(data)), *figures.signals(data)]


def _refinement(data: RunData) -> list[Part | None]:
    return [
        _side_by_side(figures.similarities(data), refinement.refinement_table(data)),
        refinement.reason_table(data),
        refinement.tau_table(data),
        *refinement.diagnostics_tables(data),
        *_examples(data),
        *_borderline(data),
    ]


def _examples(data: RunData, limit: int = 5) -> list[RowExample]:
    """Rows spread over the whole file; one of them was not kept, if there is such a row."""
    kept = [row for row in data.fused if row.get("kept")]
    dropped = [row for row in data.fused if not row.get("kept")]
    rows = _spread(kept, limit - bool(dropped)) + _spread(dropped, 1 if kept else limit)
    return [_example(row) for row in rows]


def _borderline(data: RunData, limit: int = 3) -> list[Part]:
    """The rows on both sides of the floor that a person should judge: kept ones whose rewriting is least like the
    answer, and those that were not kept although it is most like it."""
    known = sorted((row for row in data.fused if isinstance(row.get("similarity"), int | float)), key=_similarity)
    kept = [row for row in known if row.get("kept")][:limit]
    dropped = [row for row in reversed(known) if not row.get("kept")][:limit]
    parts: list[Part] = []
    for rows, title in ((kept, "Kept, and least similar"), (dropped, "Not kept, and most similar")):
        if rows:
            parts += [f"{title}:", *map(_example, rows)]
    return parts


def _similarity(row: FusedRow) -> float:
    return row["similarity"] or 0.0


def _example(row: FusedRow) -> RowExample:
    texts = {
        "Raw answer": row.get("answer"),
        "Rewritten": row.get("rewritten"),
        "Fused answer": row.get("fused_answer"),
    }
    stages = [(name, text) for name, text in texts.items() if text]
    notes = ["kept" if row.get("kept") else "not kept: the raw answer is used"]
    if rejected := (row.get("rejected") or {}).get("rewrite"):
        notes.append("against its rewriting: " + ", ".join(rejected))
    if row.get("judge_flag"):
        notes.append(f"speaks to a judge: {row['judge_flag']}")
    if isinstance(row.get("similarity"), int | float):
        notes.insert(0, f"similarity {row['similarity']:.3f}")
    if row.get("judge_scores"):
        notes.append("judges " + ", ".join(f"{score:.2f}" for score in row["judge_scores"]))
    return RowExample(str(row.get("id", "")), str(row.get("question", "")), stages, ", ".join(notes))


def _spread(rows: list[FusedRow], count: int) -> list[FusedRow]:
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def _side_by_side(*found: Figure | Table | None) -> list[Figure | Table]:
    return [part for part in found if part is not None]
