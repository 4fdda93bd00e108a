"""The page of a `raft real` run: every metric of each method over the seeds, and RAFT's differences by item."""

from collections.abc import Sequence
from pathlib import Path

from raft.real.results import Chosen, Study
from raft.report import html, markdown
from raft.report.document import Document, Section
from raft.report.load import method_name
from raft.report.numbers import MINUS, number
from raft.report.tables import Cell, Table, count_cell
from raft.runs import write_text
from raft.stats.intervals import caution

GROUPS = {
    "domain_rephrased": "Trained facts, asked otherwise",
    "domain_unseen": "Diseases that were not trained",
    "": "What the model could do before",
}
"""Prefix of a metric's name -> heading of its table; the empty prefix is for all others."""
WORDS = {
    "choice": "right answer of four",
    "similarity": "embedding similarity",
    "recall": "content words of the reference",
    "f1": "token F1",
    "rouge_l": "ROUGE-L",
    "loglik": "log p of the reference, nats a token",
    "words": "words of an answer",
    "ifeval_prompt_strict": "IFEval, prompts",
    "ifeval_instruction_strict": "IFEval, instructions",
    "arc_easy": "ARC-Easy",
}
# Metrics that have a sentence at the top of the page.
TOLD = ("domain_rephrased_choice", "domain_unseen_choice", "ifeval_prompt_strict", "arc_easy")


def write_page(folder: Path, result: Study) -> Path:
    """Write report.html and report.md from the content of medquad.json; returns the path of report.html."""
    document = build(result)
    write_text(folder / "report.md", markdown.render(document))
    write_text(folder / "report.html", html.render(document))
    return folder / "report.html"


def build(result: Study) -> Document:
    facts = [
        ("Model", str(result["model"])),
        ("Data", str(result["data"])),
        ("Seeds", ", ".join(map(str, result["seeds"]))),
        ("Commit", str(result["commit"])),
        ("Command", str(result["command"])),
    ]
    metrics = result["methods"][next(iter(result["methods"]))]
    sections = []
    for group, title in GROUPS.items():
        chosen = [metric for metric in metrics if _group(metric) == group]
        if chosen:
            sections.append(Section(title, [score_table(result, chosen, group or "general")]))
    sections.append(Section("Choice of learning rate and epochs", [grid_table(result["chosen"])]))
    findings = [_finding(result, metric) for metric in TOLD if metric in metrics]
    findings += filter(None, [caution(len(result["seeds"]))])
    return Document("RAFT against SFT on a real model", facts, findings, sections)


def score_table(result: Study, metrics: Sequence[str], name: str) -> Table:
    methods, tests = list(result["methods"]), result["tests"]
    rows = []
    for metric in metrics:
        cells = [Cell(in_words(metric)), count_cell(result["n"][metric])]
        for method in methods:
            found = result["methods"][method][metric]
            cells.append(Cell(number(found["mean"]), found["mean"], f"± {found['std']:.3f}" if found["std"] else ""))
        for pair in tests:
            if (test := tests[pair].get(metric)) is None:
                cells.append(Cell(""))
                continue
            interval = " to ".join(map(number, test["ci95"]))
            cells.append(Cell(_difference(test["difference"]), test["difference"], interval))
        rows.append(cells)
    heads = ["", "Items", *map(method_name, methods), *map(_pair, tests)]
    caption = (
        "Means over the seeds with their standard deviation. A difference is over all items and seeds, paired by item; "
        "its 95 % interval draws seeds and items, and counts an item of several seeds once."
    )
    return Table(name, caption, list(map(Cell, heads)), rows)


def _pair(name: str) -> str:
    """raft_vs_sft -> RAFT − SFT."""
    return f" {MINUS} ".join(map(method_name, name.split("_vs_")))


def _finding(result: Study, metric: str) -> str:
    means = ", ".join(
        f"{method_name(method)} {number(found[metric]['mean'])}" for method, found in result["methods"].items()
    )
    group = GROUPS[_group(metric)] + ", " if _group(metric) else ""
    sentence = f"{group}{in_words(metric)}: {means}"
    for pair, tests in result["tests"].items():
        if (test := tests.get(metric)) is not None:
            interval = " to ".join(map(_difference, test["ci95"]))
            sentence += f"; {_pair(pair)} {_difference(test['difference'])} (95 % interval {interval})"
    return sentence + "."


def _group(metric: str) -> str:
    return next(group for group in GROUPS if metric.startswith(group))


def grid_table(chosen: Chosen) -> Table:
    rows = []
    for method, points in chosen["grid"].items():
        for point in points:
            best = chosen["chosen"][method]
            is_best = (point["learning_rate"], point["epochs"]) == (best["learning_rate"], best["epochs"])
            label = f"{method_name(method)}, {point['learning_rate']:g}, {_epochs(point['epochs'])}"
            scores = (point["domain"], point["general"], point["value"])
            rows.append(
                [Cell(label + (" (chosen)" if is_best else "")), *(Cell(f"{score:.3f}", score) for score in scores)]
            )
    caption = (
        f"Seed {chosen['seed']}, on trained rows asked otherwise and questions that are not tested: the share of pairs "
        "of a right and a wrong answer in which the right one is likelier, and the harmonic mean of both, by which the "
        "point was chosen."
    )
    return Table(
        "grid", caption, [Cell("Method, learning rate, epochs"), Cell("Domain"), Cell("General"), Cell("Value")], rows
    )


def _epochs(number: float) -> str:
    return f"{number:g} epoch" + ("" if number == 1 else "s")


def in_words(metric: str) -> str:
    return WORDS.get(metric.removeprefix(_group(metric)).removeprefix("_"), metric)


def _difference(value: float) -> str:
    return f"{value:+.3f}".replace("-", MINUS)
