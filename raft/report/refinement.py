"""The tables of the refinement: how many rows it let through, why texts were not used, how answers changed."""

import statistics
from collections.abc import Mapping

from raft.refine.acceptance import REASONS
from raft.report.load import RunData
from raft.report.numbers import number, percent
from raft.report.tables import Cell, Table, count_cell


def refinement_table(data: RunData) -> Table | None:
    """How many rows each step of the refinement let through."""
    total = len(data.fused)
    if not total:
        return None
    kept = sum(bool(row.get("kept")) for row in data.fused)
    fused = sum(row.get("fused_answer") not in (None, row.get("answer")) for row in data.fused)
    similarities = [value for row in data.fused if isinstance(value := row.get("similarity"), int | float)]
    judged = [[score for score in row.get("judge_scores") or () if score is not None] for row in data.fused]
    scores = [statistics.fmean(values) for values in judged if values]
    rows = [_row_of("Rows", total), _row_of("Kept: good enough, and fused", kept, total)]
    rows.append(_row_of("Answer changed by the refinement", fused, total))
    rows.append(_row_of("Failed (the raw answer is used)", len(data.failed), total))
    if similarities:
        mean = statistics.fmean(similarities)
        rows.append([Cell("Mean similarity of rewriting and answer"), Cell(f"{mean:.3f}", mean), Cell("")])
    if scores:
        mean = statistics.fmean(scores)
        rows.append([Cell("Mean judge score of fused rows"), Cell(f"{mean:.3f}", mean), Cell("")])
    return Table("refinement", "What the refinement did with the rows.", [Cell(""), Cell("Rows"), Cell("Share")], rows)


def reason_table(data: RunData) -> Table | None:
    """How many rewritings and fused candidates were not used, and why: the reasons that there were, by their count."""
    found = data.diagnostics.get("reasons")
    stages = found if isinstance(found, dict) else {}
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


def tau_table(data: RunData) -> Table | None:
    """How many rewritings each threshold of the similarity would let through."""
    found = data.diagnostics.get("tau")
    if not isinstance(found, dict) or not found:
        return None
    total = sum(row.get("similarity") is not None for row in data.fused)
    rows = [
        [Cell(f"{float(tau):.2f}", float(tau)), *(_of_all(counts.get(name, 0), total) for name in ("similar", "pass"))]
        for tau, counts in found.items()
    ]
    caption = (
        "Rewritings that each τ would let through, and those of them that the rest of the floor lets through. A judge "
        "that costs something has not seen what is below today's τ, and may yet speak against some of it."
    )
    return Table("tau", caption, [Cell("τ"), Cell("Similar enough"), Cell("Pass the floor")], rows)


def _of_all(count: int, total: int) -> Cell:
    return Cell(f"{count:,}", float(count), f"{percent(count / total)} %" if total else "")


_STAGES = {"rewrite": "Rewritings", "fuse": "Fused candidates"}
_TEXTS = {"texts": "Texts", "rejected": "Not used, for one reason or more"}


def diagnostics_tables(data: RunData) -> list[Table]:
    """diagnostics.json as it is, whatever it holds: a table of summaries (n, mean, ...), and one for each other shape.

    Counts of rows stand in `refinement_table` already, if there is one, and the reasons in `reason_table`.
    """
    measures: dict[str, dict[str, object]] = {}
    _collect({name: value for name, value in data.diagnostics.items() if name not in _APART}, (), measures)
    if data.fused:
        measures = {name: values for name, values in measures.items() if name not in _COUNTED}
    families: dict[tuple[str, ...], dict[str, dict[str, object]]] = {}
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


_APART = ("reasons", "tau")  # which have tables of their own
_COUNTED = ("rows", "kept", "kept_share", "failed")
# What raft/refine/diagnostics.py measures, in words; a measure without words here is shown by its name in the file.
_MEASURES = {
    "similarity": "Cosine, answer to rewriting (all rows)",
    "rounds": "Rounds of fusion",
    "agreement": "Agreement of the judges (Krippendorff's alpha)",
    "flagged": "Rows with words that speak to a judge",
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


def _row_of(name: str, count: int, total: int | None = None) -> list[Cell]:
    share = Cell("") if total is None else Cell(f"{percent(count / total)} %", count / total)
    return [Cell(name), count_cell(count), share]


def _any_cell(value: object) -> Cell:
    return Cell(number(value), float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None)


def _collect(value: Mapping[str, object], path: tuple[str, ...], groups: dict[str, dict[str, object]]) -> None:
    """Nested objects to rows: the innermost keys become columns, the path to them the row's name."""
    plain: dict[str, object] = {}
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
