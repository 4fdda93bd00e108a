"""The page of a real run: every metric of base, SFT and RAFT over the seeds, and RAFT against SFT item by item."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raft.report import html, markdown
from raft.report.document import Document, Section
from raft.report.load import method_name
from raft.report.tables import MINUS, Cell, Table, number
from raft.runs import write_text

WORDS = {
    "domain_rephrased": "trained facts, asked otherwise",
    "domain_unseen": "rows about diseases that were not trained",
    "choice": "right answer of four",
    "similarity": "embedding similarity",
    "recall": "content words of the reference",
    "f1": "token F1",
    "rouge_l": "ROUGE-L",
    "loglik": "log-likelihood of the reference, nats a token",
    "words": "length of an answer in words",
    "ifeval_prompt_strict": "IFEval, prompts followed",
    "ifeval_instruction_strict": "IFEval, instructions followed",
    "arc_easy": "ARC-Easy",
}


def write_page(folder: Path, result: Mapping[str, Any]) -> Path:
    """report.html and report.md of what medquad.json holds; the path of the first."""
    document = build(result)
    write_text(folder / "report.md", markdown.render(document))
    write_text(folder / "report.html", html.render(document))
    return folder / "report.html"


def build(result: Mapping[str, Any]) -> Document:
    facts = [
        ("Model", str(result["model"])),
        ("Data", str(result["data"])),
        ("Seeds", ", ".join(map(str, result["seeds"]))),
        ("Commit", str(result["commit"])),
        ("Command", str(result["command"])),
    ]
    sections = [
        Section("Scores", tables=[score_table(result)]),
        Section("Choice of learning rate and epochs", tables=[grid_table(result["chosen"])]),
    ]
    return Document("RAFT against SFT on a real model", facts, [], sections)


def score_table(result: Mapping[str, Any]) -> Table:
    methods = list(result["methods"])
    compared = result["tests"].get("raft_vs_sft", {})
    rows = []
    for metric in result["methods"][methods[0]]:
        cells = [Cell(in_words(metric)), Cell(f"{result['n'][metric]:,}", float(result["n"][metric]))]
        for method in methods:
            found = result["methods"][method][metric]
            spread = f"± {found['std']:.3f}" if found["std"] else ""
            cells.append(Cell(number(found["mean"]), found["mean"], note=spread))
        if (test := compared.get(metric)) is not None:
            low, high = test["ci95"]
            cells.append(
                Cell(_difference(test["difference"]), test["difference"], note=f"{number(low)} to {number(high)}")
            )
        else:
            cells.append(Cell(""))
        rows.append(cells)
    header = [Cell("Metric"), Cell("Items"), *(Cell(method_name(m)) for m in methods), Cell("RAFT − SFT")]
    caption = (
        "Means over the seeds with their standard deviation. The difference is over all items and seeds, paired by item, with its "
        "95 % interval, which counts an item of several seeds once."
    )
    return Table("scores", caption, header, rows)


def grid_table(chosen: Mapping[str, Any]) -> Table:
    names = ("domain", "general", "value")
    rows = []
    for method, points in chosen["grid"].items():
        for point in points:
            best = all(point[key] == chosen["chosen"][method][key] for key in ("learning_rate", "epochs"))
            label = f"{method_name(method)}, {point['learning_rate']:g}, {point['epochs']} epochs" + (
                " (chosen)" if best else ""
            )
            rows.append([Cell(label), *(Cell(f"{point[name]:.3f}", point[name]) for name in names)])
    caption = (
        f"Seed {chosen['seed']}, on trained rows asked otherwise and questions that are not tested: the share of pairs of "
        "a right and a wrong answer in which the right one is likelier, and the harmonic mean of both, by which the point "
        "was chosen."
    )
    return Table(
        "grid", caption, [Cell("Method, learning rate, epochs"), Cell("Domain"), Cell("General"), Cell("Value")], rows
    )


def in_words(metric: str) -> str:
    if metric in WORDS:
        return WORDS[metric]
    for name in ("domain_rephrased", "domain_unseen"):
        if metric.startswith(f"{name}_"):
            measure = metric.removeprefix(f"{name}_")
            return f"{WORDS[name]}: {WORDS.get(measure, measure)}"
    return metric


def _difference(value: float) -> str:
    return f"{value:+.3f}".replace("-", MINUS)
