"""The page and the documents about the real run say what its record says."""

import re
from pathlib import Path

import pytest

from raft.real.report import GROUPS, build, in_words
from raft.real.scores import METRICS
from raft.report import html, markdown
from raft.runs import read_json

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def record():
    return read_json(ROOT / "results" / "real" / "medquad.json")


def test_every_metric_is_on_the_page_under_its_heading(record):
    document = build(record)
    titles = [section.title for section in document.sections]
    assert titles == [*GROUPS.values(), "Choice of learning rate and epochs"]
    rows = {(section.title, row[0].text): row for section in document.sections[:3] for row in section.parts[0].rows}
    assert len(rows) == len(METRICS)
    for metric in METRICS:
        title = next(title for group, title in GROUPS.items() if metric.startswith(group))
        row = rows[title, in_words(metric)]
        assert [cell.value for cell in row[1:]] == [
            record["n"][metric],
            *(record["methods"][method][metric]["mean"] for method in ("base", "sft", "raft")),
            record["tests"]["raft_vs_sft"][metric]["difference"],
        ]
    assert "IFEval, prompts: Base 0.150, SFT 0.063, RAFT 0.117; RAFT − SFT +0.053" in "\n".join(document.findings)
    assert "1 epochs" not in html.render(document) and "1 epochs" not in markdown.render(document)


IN_README = {
    "trained facts, asked otherwise": "domain_rephrased_choice",
    "diseases that were not trained": "domain_unseen_choice",
    "IFEval": "ifeval_prompt_strict",
    "ARC-Easy": "arc_easy",
}


@pytest.mark.parametrize("document", ["docs/real.md", "README.md"])
def test_the_documents_have_the_figures_of_the_record(record, document):
    """Rows whose first cell names a metric: items, then means, then the difference with its interval."""
    found = 0
    for line in (ROOT / document).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if (name := IN_README.get(cells[0], cells[0].strip("`"))) not in METRICS or len(cells) < 6:
            continue
        found += 1
        numbers = [float(text) for text in re.findall(r"[+−-]?\d*\.?\d+", line.replace("−", "-").replace(cells[0], ""))]
        test = record["tests"]["raft_vs_sft"][name]
        expected = [
            record["n"][name],
            *(record["methods"][method][name]["mean"] for method in ("base", "sft", "raft")),
            test["difference"],
            *test["ci95"],
        ]
        assert numbers == pytest.approx(expected, abs=6e-3 if "words" not in name else 0.06), line
    assert found == {"docs/real.md": len(METRICS), "README.md": 4}[document]
