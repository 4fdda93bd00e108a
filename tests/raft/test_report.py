"""The report: its numbers are those of the files, its text is safe, and it works for any part of a run."""

import html
import json
import math
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.errors import InputError, RunFolderError
from raft.refine.acceptance import REASONS
from raft.report import write_report
from raft.report.estimates import estimate
from raft.report.figures import signals, slug
from raft.report.html import environment
from raft.report.load import load_run
from raft.report.numbers import duration, percent, points
from raft.report.plots import VARIABLES, drawing, template, thin
from raft.report.refinement import diagnostics_tables, reason_table
from raft.report.samples import choose
from raft.report.tables import score_table
from raft.report.text import clean, clip, markdown_text
from raft.runs import read_jsonl
from raft.stats.intervals import interval
from tests.raft.report_fixture import METHODS, build_refine, build_run, write, write_lines

ROOT = Path(__file__).parents[2]
VOID = {"meta", "link", "img", "br", "input", "hr"}


class Page(HTMLParser):
    """Tables as rows of cell texts, all text and tags; fails on tags that do not close in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.tables, self.values, self.headings = {}, {}, []
        self._table = None
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        attrs = dict(attrs)
        if tag == "table":
            self._table = attrs["id"].removeprefix("table-")
            self.tables[self._table], self.values[self._table] = [], []
        elif tag == "tr":
            self.tables[self._table].append([])
            self.values[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")
            self.values[self._table][-1].append(float(attrs["data-value"]) if "data-value" in attrs else None)
        elif tag == "h2":
            self.headings.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag
        if tag == "table":
            self._table = None

    def handle_data(self, data):
        self.text.append(data)
        if self._table and self.open[-1] in ("td", "th"):
            self.tables[self._table][-1][-1] += data
        if self.open and self.open[-1] == "h2":
            self.headings[-1] += data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return build_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def page(run):
    return write_report(run).read_text()


@pytest.fixture(scope="module")
def parsed(page):
    return Page(page)


def by_row(parsed, name):
    return {row[0]: row[1:] for row in parsed.tables[name]}, {
        row[0]: values[1:] for row, values in zip(parsed.tables[name], parsed.values[name], strict=True)
    }


def test_scores_are_those_of_the_summary(run, parsed):
    summary = json.loads((run / "summary.json").read_text())
    text, value = by_row(parsed, "scores")
    for method, label in zip(METHODS, ("Base", "SFT", "RAFT"), strict=True):
        for column, suite in enumerate(("domain", "general", "format")):
            score = summary["scores"][method][suite]
            assert value[label][column] == score
            assert text[label][column] == f"{100 * score:.1f}"
    for label, method in (("SFT", "sft"), ("RAFT", "raft")):
        kept = summary["retention"][method]
        assert value[label][3:] == [kept["general"], kept["format"]]
    difference = summary["scores"]["raft"]["general"] - summary["scores"]["sft"]["general"]
    assert value["RAFT − SFT"][1] == pytest.approx(difference)
    assert text["RAFT − SFT"][1] == f"{100 * difference:+.1f}"
    lost = summary["scores"]["sft"]["general"] - summary["scores"]["base"]["general"]
    assert value["SFT − Base"][1] == pytest.approx(lost) and "RAFT − Base" in value
    assert f"SFT against the base model: general {points(lost)} points (95 % interval" in " ".join(parsed.text)


def test_intervals_are_those_of_the_items(run, page):
    data = load_run(run)
    scores = {method: data.item_scores(method, "domain") for method in ("sft", "raft")}
    low, high = interval([{i: [value] for i, value in scores["raft"].items()}])
    assert f"{100 * low:.1f} – {100 * high:.1f}" in page
    ids = sorted(scores["raft"])  # id and question
    low, high = interval([{i: [scores["raft"][i] - scores["sft"][i]] for i in ids}])
    assert f"{100 * low:+.1f} to {100 * high:+.1f}" in page


def test_other_items_are_not_compared_as_if_they_were_the_same(run, tmp_path):
    """Two thirds of the items in common; the others have ids of their own, or the same id and another question."""
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "summary.json").unlink()
    file = folder / "eval" / "raft.json"
    result = json.loads(file.read_text())
    samples = [s for s in result["samples"] if s["suite"] == "domain"]
    for i, sample in enumerate(samples):
        if i % 3 == 0:
            sample |= {"id": f"new-{i}"} if i % 2 else {"question": "something else?"}
            sample["score"] = 1.0
    write(file, {**result, "scores": {**result["scores"], "domain": sum(s["score"] for s in samples) / len(samples)}})
    data = load_run(folder)
    kept = {s["id"]: s["score"] for i, s in enumerate(samples) if i % 3}
    base = {s["id"]: s["score"] for s in data.evals["base"]["samples"] if s["id"] in kept}
    gained = sum(kept.values()) / len(kept) - sum(base.values()) / len(base)
    found = estimate([data]).differences["raft", "base", "domain"]
    assert found.value == pytest.approx(gained) and found.interval.low <= found.value <= found.interval.high
    [caution] = data.cautions
    assert caution == (
        f"RAFT and Base were not asked the same items of domain: 200 and 200, {len(kept)} in common, which alone are "
        "compared."
    )
    page = write_report(folder).read_text()
    assert caution in html.unescape(page) and "200 items" in page


def test_without_common_items_there_is_no_difference(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "summary.json").unlink()
    file = folder / "eval" / "raft.json"
    result = json.loads(file.read_text())
    samples = [{**s, "id": f"other-{s['id']}"} for s in result["samples"]]
    write(file, {**result, "samples": samples})
    data = load_run(folder)
    found = estimate([data]).differences
    assert ("raft", "base", "general") not in found and ("sft", "base", "general") in found
    assert "raft" not in {m for m, kept in data.retention.items() if kept}


def test_items_of_the_training_rows_are_told(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    file = folder / "eval" / "raft.json"
    write(file, {**json.loads(file.read_text()), "trained_items": ["domain-1", "domain-2"]})
    page = write_report(folder).read_text()
    assert "2 of the 600 items that RAFT answered ask what the training rows ask" in page
    assert "held out" not in page


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.41, "0.4 s"), (59.2, "59 s"), (125, "2 min 5 s"), (12_000, "3 h 20 min"), (59.7, "1 min 0 s")],
)
def test_durations_are_for_people(value, text):
    assert duration(value) == text


def test_skills_seconds_and_distances_are_those_of_the_files(run, parsed):
    evals = {method: json.loads((run / "eval" / f"{method}.json").read_text()) for method in METHODS}
    suite, seen = "", 0
    for row, values in zip(parsed.tables["skills"][1:], parsed.values["skills"][1:], strict=True):
        suite, skill = row[0] or suite, row[1].replace(" ", "_")
        base, *trained = [evals[method]["by_skill"][suite][skill] for method in METHODS]
        assert values[3:] == [base, *trained, *(value - base for value in trained)]
        assert values[2] == sum(s["skill"] == skill and s["suite"] == suite for s in evals["base"]["samples"])
        seen += 1
    assert seen == sum(len(skills) for skills in evals["base"]["by_skill"].values())
    seconds = json.loads((run / "summary.json").read_text())["seconds"]
    _, value = by_row(parsed, "seconds")
    assert {name: v[0] for name, v in value.items() if name in seconds} == seconds
    assert value["all stages"] == [pytest.approx(sum(seconds.values()))]
    distance = json.loads((run / "eval" / "weight_distance.json").read_text())
    _, value = by_row(parsed, "distance")
    assert value["Mean over layers"] == [distance["sft"]["mean"], distance["raft"]["mean"]]


def test_signals_of_the_training_are_drawn_where_they_were_logged(run, tmp_path):
    drawn = {figure.name: figure for figure in signals(load_run(run))}
    assert list(drawn) == ["lambda", "learning_rate", "grad_norm", "tokens_per_second"]
    folder = tmp_path / "run"
    lines = [
        {"step": 1, "loss_sft": 1.0, "rollout_length": 10.0, "rollout_truncated": 0.25, "student_entropy": 2.0},
        {"step": 2, "loss_sft": 1.0, "rollout_length": 14.0, "rollout_truncated": 0.5, "student_entropy": 1.5},
    ]
    write_lines(folder / "train" / "metrics.jsonl", lines)
    drawn = {figure.name: figure for figure in signals(load_run(folder))}
    assert drawn["rollout_truncated"].caption == "First to last logged step: RAFT 25.0 % to 50.0 %."
    assert "tokens, mean" in drawn["rollout_length"].svg and "nats a token" in drawn["student_entropy"].svg


def test_refinement_counts(run, parsed):
    fused = read_jsonl(run / "refine" / "fused.jsonl")
    _, value = by_row(parsed, "refinement")
    kept = sum(row["kept"] for row in fused)
    assert value["Kept: good enough, and fused"] == [kept, kept / len(fused)]
    assert value["Rows"][0] == len(fused)


def test_reasons_are_in_words_with_their_counts(run, parsed):
    counts = json.loads((run / "refine" / "diagnostics.json").read_text())["reasons"]
    table = parsed.tables["reasons"]
    assert table[0][1:] == ["Rewritings", "Fused candidates"]
    text, value = by_row(parsed, "reasons")
    found = {REASONS[name]: [counts[stage][name] for stage in ("rewrite", "fuse")] for name in REASONS}
    found = {words: pair for words, pair in found.items() if any(pair)}
    assert len(found) == 4  # of the fixture, where all others have no case and stay out
    assert {words: value[words] for words in found} == found
    assert list(text)[1:] == ["Texts", "Not used, for one reason or more", *sorted(found, key=lambda w: -sum(found[w]))]
    assert value["Texts"] == [counts["rewrite"]["texts"], counts["fuse"]["texts"]]
    rejected = counts["fuse"]["rejected"]
    assert text["Not used, for one reason or more"][1] == str(rejected)
    assert f"{100 * rejected / counts['fuse']['texts']:.1f} %" in parsed.text
    elsewhere = [row[0] for name, rows in parsed.tables.items() if name != "reasons" for row in rows]
    assert not any("reasons" in name for name in elsewhere)


def test_a_report_is_written_without_torch(run, tmp_path):
    shutil.copytree(run / "refine", tmp_path / "refine")
    code = (
        "import sys; from raft.report import write_report; write_report(sys.argv[1]); "
        "heavy = {'torch', 'transformers', 'sentence_transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert 'id="table-reasons"' in (tmp_path / "report.html").read_text()


def test_what_cannot_be_reported_is_refused_without_importing_what_draws(tmp_path):
    code = (
        "import sys; from raft.cli import main; assert main(['report', '--run', sys.argv[1]]) == 2; "
        "heavy = {'matplotlib', 'scipy', 'jinja2', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    command = [sys.executable, "-c", code, tmp_path / "none"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "no such run folder" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "reasons",
    [None, 3, {}, {"rewrite": 1}, {"rewrite": {}}, {"rewrite": {"texts": 0, "rejected": 0, "echo": 0}}],
)
def test_without_texts_there_is_no_table_of_reasons(tmp_path, reasons):
    write(tmp_path / "refine" / "diagnostics.json", {"rows": 2, "reasons": reasons})
    assert reason_table(load_run(tmp_path)) is None
    assert 'id="table-reasons"' not in write_report(tmp_path).read_text()


def test_an_unknown_reason_is_shown_by_its_name(tmp_path):
    counts = {"texts": 4, "rejected": 1, "odd": 1}
    write(tmp_path / "refine" / "diagnostics.json", {"reasons": {"rewrite": counts}})
    table = reason_table(load_run(tmp_path))
    assert [[cell.text for cell in row] for row in table.rows][1:] == [
        ["Not used, for one reason or more", "1"],
        ["odd", "1"],
    ]
    assert [row[1].note for row in table.rows] == ["", "25.0 %", "25.0 %"]


def test_markdown_has_the_same_numbers(run, parsed):
    text = (run / "report.md").read_text()
    plain = re.sub(r"\\(.)", r"\1", text)
    for name, rows in parsed.tables.items():
        for row, values in zip(rows, parsed.values[name], strict=True):
            if any(v is not None for v in values):
                assert any(line.startswith("|") and all(cell in line for cell in row) for line in plain.split("\n")), (
                    row
                )
    for picture in re.findall(r"\]\((report/[^)]+)\)", text):
        root = ET.parse(run / picture).getroot()  # whole XML, so any viewer opens it
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("aria-label")
    assert "report/trade-off.svg" in text


def test_the_page_is_self_contained_and_small(run, page, parsed):
    assert len(page.encode()) < 1_500_000
    assert not {"script", "link", "iframe", "img", "object", "embed", "base", "form"} & set(parsed.tags)
    for name, value in parsed.attributes:
        assert not name.startswith("on"), name
        assert not re.match(r"\s*(https?:|//|data:|javascript:)", value or ""), (name, value)
        if name in ("href", "src"):
            assert value.startswith("#")
    assert "url(" not in page and "@import" not in page
    assert all(f'href="#{heading.lower()}"' in page for heading in parsed.headings)
    assert len(re.findall(r"<svg[^>]*>", page)) == len(re.findall(r'<svg[^>]* role="img" aria-label="[^"]+', page))


def test_all_sections_of_a_demo_run(parsed):
    assert parsed.headings[:4] == ["Trade-off", "Scores", "Skills", "Training"]
    assert parsed.headings[4:] == ["Weights", "Refinement", "Samples", "Time", "Settings"]


def test_samples_show_forgetting_on_both_sides(run, parsed):
    forgot, also, right, wrong = choose(load_run(run))
    assert forgot.title.startswith("SFT forgot it") and also.title.startswith("RAFT forgot it")
    for pair in forgot.shown:
        scores = {method: sample["score"] for method, sample in pair.answers.items()}
        assert scores == {"base": 1.0, "sft": 0.0, "raft": 1.0} and pair.suite != "domain"
    assert len({pair.skill for pair in forgot.shown}) == len(forgot.shown)  # spread over the skills
    for pair in also.shown:
        assert pair.answers["base"]["score"] == 1.0 and pair.answers["raft"]["score"] == 0.0
    assert right.found + wrong.found == right.of == 200
    assert all(pair.answers["raft"]["score"] == 0.0 and pair.suite == "domain" for pair in wrong.shown)
    assert f"{also.found:,} of {also.of:,} items" in "".join(parsed.text)


HOSTILE = (
    '<script>alert("x")</script></div><img src=http://x.test/a.png onerror=x> | `a` [l](http://x.test) \ud800\x00\u202e'
)


def test_model_output_is_shown_and_never_run(tmp_path):
    run = build_run(tmp_path / "run", n=20, steps=16)
    for method in METHODS:
        path = run / "eval" / f"{method}.json"
        value = json.loads(path.read_text())
        for sample in value["samples"]:
            sample["output"] = HOSTILE
            sample["question"] = HOSTILE
            sample["skill"] = HOSTILE
        write(path, value)
    rows = read_jsonl(run / "refine" / "fused.jsonl")
    write_lines(run / "refine" / "fused.jsonl", [{**row, "question": HOSTILE, "fused_answer": HOSTILE} for row in rows])
    config = json.loads((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(
        json.dumps({**config, "model": "<b>$title</b>", "data": HOSTILE.replace("\ud800", "")})
    )
    page = write_report(run).read_text()
    parsed = Page(page)
    assert not {"script", "img", "b"} & set(parsed.tags)
    assert '<script>alert("x")</script>' in "".join(parsed.text)  # shown as it is
    assert "\x00" not in page and "\u202e" not in page
    text = (run / "report.md").read_text()
    assert "<script" not in text and "http://x.test" not in text
    assert all(target.startswith("report/") for target in re.findall(r"(?<!\\)\]\(([^)]*)", text))
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(cells) == 1, table  # one more in a line would mean that an answer broke out of its cell


def test_a_suite_cannot_name_a_file_outside(tmp_path):
    run = tmp_path / "run"
    write(run / "eval" / "model.json", {"scores": {"../../x": 1.0}, "n": {"../../x": 1}, "samples": []})
    write_report(run)
    assert not list(tmp_path.glob("*.svg")) and slug("../../x") == "-x"
    assert (run / "report" / "scores--x.svg").exists()


PARTS = {
    "refine": (["refine"], {"Refinement"}),
    "train": (["train"], {"Trade-off", "Training", "Time"}),
    "eval": (["eval"], {"Scores", "Skills", "Samples", "Weights"}),
    "summary": (["summary.json"], {"Scores", "Time", "Settings"}),
    "train and refine": (
        ["train", "refine", "config.yaml"],
        {"Trade-off", "Training", "Time", "Refinement", "Settings"},
    ),
}


@pytest.mark.parametrize("part", PARTS)
def test_parts_of_a_run(run, tmp_path, part):
    names, sections = PARTS[part]
    for name in names:
        (shutil.copytree if (run / name).is_dir() else shutil.copy)(run / name, tmp_path / name)
    parsed = Page(write_report(tmp_path).read_text())
    assert set(parsed.headings) == sections
    assert (tmp_path / "report.md").read_text().startswith("# RAFT")


@pytest.mark.parametrize("missing", ["fused.jsonl", "diagnostics.json", "failed.jsonl"])
def test_refinement_without_one_of_its_files(tmp_path, missing):
    import random

    build_refine(tmp_path / "refine", random.Random(0), rows=9)
    (tmp_path / "refine" / missing).unlink()
    assert Page(write_report(tmp_path).read_text()).headings == ["Refinement"]


def test_a_run_of_another_method_keeps_its_name(run, tmp_path):
    shutil.copytree(run / "train", tmp_path / "train")
    write(tmp_path / "train" / "config.yaml", {"train": {"method": "on_policy"}})
    write(tmp_path / "eval" / "on_policy.json", json.loads((run / "eval" / "raft.json").read_text()))
    text = "".join(Page(write_report(tmp_path).read_text()).text)
    assert "on_policy L_SFT" in text and "Domain questions that on_policy got wrong" in text
    assert "SFT forgot" not in text


def test_nothing_to_report(tmp_path):
    with pytest.raises(RunFolderError, match="no such run folder"):
        write_report(tmp_path / "no")
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(RunFolderError, match="nothing to report") as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report.html").exists()


def test_broken_files_are_named(tmp_path):
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(InputError, match=r"summary\.json"):
        write_report(tmp_path)


def test_metrics_with_gaps_and_not_finite_numbers(tmp_path):
    lines = [
        {"step": 1, "loss_sft": 2.0, "loss_kl": None, "lambda": None, "seconds": None},
        {"step": 2, "loss_sft": float("nan"), "loss_kl": 0.0, "lambda": 0.0},
        {"step": 3, "loss_sft": 1.0, "loss_kl": 0.5, "lambda": float("inf")},
        {"step": 4},
    ]
    write_lines(tmp_path / "train" / "metrics.jsonl", lines)
    page = write_report(tmp_path).read_text()
    assert Page(page).headings == ["Training"]
    assert "nan" not in "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL)).lower()


def test_one_line_of_metrics(tmp_path):
    line = {"step": 1, "loss_sft": 2.0, "loss_kl": 0.5, "lambda": 4.0, "seconds": {"rollout": 1.0, "new_phase": 2.0}}
    write_lines(tmp_path / "train" / "metrics.jsonl", [line])
    page = write_report(tmp_path).read_text()
    assert "new phase" in page and "with it 1;" in page  # 2.0 / (4.0 * 0.5)


def test_diagnostics_of_any_shape(tmp_path):
    shape = {
        "rows": 9,
        "length": {"raw": {"n": 9, "mean": 1.5}, "refined": {"n": 9, "median": 2}},
        "empty": {},
        "x": [1, 2],
    }
    write(tmp_path / "refine" / "diagnostics.json", shape)
    summaries, plain = diagnostics_tables(load_run(tmp_path))
    assert [cell.text for cell in summaries.header[1:]] == ["n", "mean", "median"]
    cells = {row[0].text: [cell.text for cell in row[1:]] for row in (*summaries.rows, *plain.rows)}
    assert cells["length / raw"] == ["9", "1.500", ""] and cells["length / refined"] == ["9", "", "2"]
    assert cells["rows"] == ["9"] and cells["x"] == ["2 values"]


def test_scores_without_samples_have_no_interval(tmp_path):
    scores = {"base": {"domain": 0.0, "general": 0.9}, "raft": {"domain": 0.5, "general": 0.8}}
    write(tmp_path / "summary.json", {"scores": scores, "n": {"domain": 10, "general": 10}})
    table = score_table(estimate([load_run(tmp_path)]))
    assert all(cell.note == "" for row in table.rows for cell in row)
    raft, change = table.rows[1:]
    assert raft[-1].value == pytest.approx(0.8 / 0.9)
    assert [cell.value for cell in change[1:3]] == [pytest.approx(0.5), pytest.approx(-0.1)]
    assert len(table.rows) == 3  # no difference to a method that was not run


def test_numbers_as_text():
    assert percent(0.585) == "58.5" and percent(1.0) == "100.0" and percent(0.0) == "0.0"
    assert points(0.2) == "+20.0" and points(-0.2) == "−20.0" and points(-0.0001) == "0.0"


@given(st.text())
def test_escaped_text_has_no_markup(text):
    escaped = environment().from_string("{{ text }}").render(text=text)
    assert not set("<>\"'") & set(escaped)
    escaped.encode("utf-8")
    assert "\n" not in markdown_text(text) and "<" not in markdown_text(text).replace("<br>", "")
    assert clean(clean(text)) == clean(text)


def test_clip():
    assert clip("short") == "short"
    assert clip("x" * 5000).startswith("x" * 600 + " …") and len(clip("x" * 5000)) < 640


def drawn(points, **options):
    """The SVG of one line through the points, as an element; and its axes."""
    with drawing("t", "x", "y", **options) as found:
        found.line(points, "raft")
    assert "nan" not in found.svg
    return ET.fromstring(found.svg), found.axes


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1e9, 1e9, allow_nan=False), min_size=1, max_size=20))
def test_axes_hold_their_values(values):
    _, axes = drawn(list(enumerate(values)))
    for (low, high), found in ((axes.get_xlim(), range(len(values))), (axes.get_ylim(), values)):
        room = 1e-6 * (high - low)
        assert low < high and low - room <= min(found) and max(found) <= high + room
    assert len(axes.get_yticks()) >= 2


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20))
def test_a_log_axis_holds_its_values_and_has_ticks(values):
    _, axes = drawn(list(enumerate([*values, 0.0, float("nan")])), log=True)
    low, high = axes.get_ylim()
    assert low <= min(values) and max(values) <= high
    assert any(low <= tick <= high for tick in axes.get_yticks())


def test_marks_lie_where_the_data_say_and_a_gap_breaks_the_line():
    svg, _ = drawn([(0, 0), (2, 4), (5, math.nan), (6, 8), (8, math.nan), (10, 10)])
    [line] = [
        path.get("d") for path in svg.iter("path") if "stroke:var(--raft)" in path.get("style") and not path.get("id")
    ]
    [first, second] = [[float(v) for v in point.split()] for point in re.fullmatch("M(.*)L(.*)M.*M.*", line).groups()]
    [mark, other] = [
        (float(use.get("x")), float(use.get("y"))) for use in svg.iter("use")
    ]  # of values without neighbours
    across, up = second[0] - first[0], first[1] - second[1]
    assert mark == pytest.approx((first[0] + 3 * across, first[1] - 2 * up), abs=0.3)
    assert other == pytest.approx((first[0] + 5 * across, first[1] - 2.5 * up), abs=0.4)
    width, height = map(float, svg.get("viewBox").split()[2:])
    assert 0 < first[0] < other[0] <= width and 0 <= other[1] < first[1] < height


def test_a_drawing_has_the_colours_of_the_page_in_light_and_dark(run, page):
    drawings = {file.stem: file.read_text() for file in (run / "report").glob("*.svg")}
    style = template("chart.css")
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    for variable in VARIABLES:
        assert light.count(f"--{variable}:") == dark.count(f"--{variable}:") == 1
    for name, svg in drawings.items():
        used = set(re.findall(r"var\(--([\w-]+)\)", svg))
        assert {"ink", "muted"} & used <= set(VARIABLES), name
        assert svg.count("<style>") == 1 and style in svg
        assert not re.search(r"#[0-9a-f]{6}", svg.replace(style, "")), name  # no colour that a theme could not change
    assert {"sft", "raft"} <= set(re.findall(r"stroke:var\(--(\w+)\)", drawings["losses"]))


def test_drawings_are_text_and_the_same_each_time(run, page):
    before = {file.name: file.read_bytes() for file in (run / "report").glob("*.svg")}
    assert write_report(run).read_text() == page
    assert {file.name: file.read_bytes() for file in (run / "report").glob("*.svg")} == before
    losses = ET.fromstring(before["losses.svg"])
    texts = [text.text for text in losses.iter("{http://www.w3.org/2000/svg}text")]
    assert {"step", "loss, nats a token", "SFT L_SFT", "RAFT L_KL"} <= set(texts)
    assert b"Date" not in before["losses.svg"] and b"DejaVu" not in before["losses.svg"]


def test_marks_say_what_they_are(page):
    assert re.search(r"<title>RAFT, layer 0: 0\.\d{4}</title>", page) and "<title>SFT, step " in page


def test_any_number_of_methods(run, tmp_path):
    """Seven methods beside the base, each with a training and scores, a colour, and compared with the base and RAFT."""
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "summary.json").unlink()
    others = ["fapm", "l2sp", "on_policy", "sdft", "_x<y>$z$"]
    for name in others:
        write(folder / "eval" / f"{name}.json", json.loads((run / "eval" / "sft.json").read_text()))
        shutil.copytree(run / "baselines" / "sft", folder / "baselines" / name)
    data = load_run(folder)
    assert data.methods == ["base", "sft", "raft", *sorted(others)] and list(data.training) == data.methods[1:]
    styles = [data.styles[method] for method in data.methods]
    assert len(set(styles)) == len(styles) and set(styles) <= set(VARIABLES)
    parsed = Page(write_report(folder).read_text())
    rows = [row[0] for row in parsed.tables["scores"][1:]]
    trained = ["SFT", "RAFT", *sorted(others)]
    pairs = [*((name, "Base") for name in trained), *(("RAFT", name) for name in trained if name != "RAFT")]
    assert rows == ["Base", *trained, *(f"{first} − {second}" for first, second in pairs)]
    text = "".join(parsed.text)
    assert "RAFT against SFT, _x<y>$z$, fapm, l2sp, on_policy and sdft" in text
    for name in others:
        assert f"{name} against the base model: general" in text and f"{name} L_SFT" in text
        assert f"{name} forgot it, RAFT did not" in text


def test_thinning_keeps_the_ends():
    points = [(float(i), 0.0) for i in range(10_001)]
    kept = thin(points)
    assert len(kept) <= 501 and kept[0] == points[0] and kept[-1] == points[-1]
