"""Several runs on one page: means, spread and intervals are those of the files; what cannot be compared is refused."""

import shutil
import statistics

import pytest

from raft.cli import main
from raft.errors import RunFolderError
from raft.report import write_report
from raft.report.estimates import estimate
from raft.report.load import load_run
from raft.report.numbers import percent, points
from raft.report.tables import score_table
from raft.runs import read_json, write_json
from raft.runs.folder import open_run
from raft.stats.intervals import interval
from tests.raft.report_fixture import build_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folders = [tmp_path_factory.mktemp("runs") / f"seed-{seed}" for seed in range(3)]
    for seed, folder in enumerate(folders):
        build_run(folder, seed=seed)
        for file in (folder / "eval").glob("*.json"):  # the same questions under every seed
            result = read_json(file)
            for sample in result.get("samples", ()):
                sample["question"] = f"question {sample['id']}"
            write_json(file, result)
    return folders


def runs_table(runs):
    return score_table(estimate(runs))


def cells(table):
    return {row[0].text: dict(zip((c.text for c in table.header), row, strict=True)) for row in table.rows}


def test_a_score_is_the_mean_over_the_runs(runs):
    data = [load_run(folder) for folder in runs]
    found = cells(runs_table(data))
    for method, name in (("base", "Base"), ("sft", "SFT"), ("raft", "RAFT")):
        for suite in ("domain", "general", "format"):
            values = [run.scores[method][suite] for run in data]
            cell = found[name][suite.capitalize()]
            assert cell.value == pytest.approx(statistics.fmean(values))
            assert cell.note == f"± {percent(statistics.stdev(values))}"
        assert found[name]["Runs"].text == "3"


def test_a_difference_is_paired_by_item_and_counts_an_item_once(runs):
    data = [load_run(folder) for folder in runs]
    found = cells(runs_table(data))["RAFT − Base"]["General"]
    by_run = []
    for run in data:
        ours, theirs = run.item_scores("raft", "general"), run.item_scores("base", "general")
        by_run.append({item: [ours[item] - theirs[item]] for item in sorted(ours)})
    assert by_run[0].keys() == by_run[1].keys() == by_run[2].keys()
    assert found.value == pytest.approx(statistics.fmean(d for of in by_run for [d] in of.values()))
    low, high = interval(by_run)
    assert found.note == f"{points(low)} to {points(high)}"


def test_other_methods_have_rows_of_their_own(runs, tmp_path):
    other = tmp_path / "ours"
    shutil.copytree(runs[1], other)
    (other / "summary.json").unlink()
    (other / "eval" / "raft.json").rename(other / "eval" / "sdft.json")
    found = cells(runs_table([load_run(runs[0]), load_run(other)]))
    assert [found[name]["Runs"].text for name in ("Base", "SFT", "RAFT", "sdft")] == ["2", "2", "1", "1"]
    assert found["sdft − Base"]["Runs"].text == "1" and found["RAFT − SFT"]["Runs"].text == "1"
    assert found["sdft"]["Domain"].note == ""


def test_runs_without_common_items_have_no_difference(runs, tmp_path):
    other = tmp_path / "ours"
    shutil.copytree(runs[1], other)
    (other / "summary.json").unlink()
    result = read_json(other / "eval" / "base.json")
    for sample in result["samples"]:
        sample["id"] = f"another-{sample['id']}"
    write_json(other / "eval" / "base.json", result)
    table = cells(runs_table([load_run(other)]))
    assert table["RAFT − Base"]["General"].text == "" and table["RAFT − SFT"]["General"].text != ""


def test_the_page_begins_with_it(runs, tmp_path, capsys):
    folder = open_run(tmp_path / "first", "demo").path
    shutil.copytree(runs[0], folder, dirs_exist_ok=True)
    assert main(["report", "--run", str(folder), "--beside", str(runs[1]), str(runs[2])]) == 0
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for written in (page, text):
        assert "seed-1, seed-2" in written
        assert "With 3 trainings an interval is rough" in written
        assert written.index("Over all runs") < written.index("Trade-off")
    write_report(folder)
    assert "Over all runs" not in (folder / "report.html").read_text()


def test_what_cannot_be_put_beside_is_refused(runs, tmp_path, capsys):
    empty = tmp_path / "empty"
    (empty / "refine").mkdir(parents=True)
    (empty / "refine" / "diagnostics.json").write_text('{"rows": 1}')
    for others, reason in (
        ([runs[0]], "is there twice"),
        ([runs[1], runs[1]], "is there twice"),
        ([empty], "no scores"),
        ([tmp_path / "none"], "no such run folder"),
    ):
        with pytest.raises(RunFolderError, match=reason):
            write_report(runs[0], others)
        before = {path for path in runs[0].rglob("*")}
        assert main(["report", "--run", str(runs[0]), "--beside", *map(str, others)]) == 2
        assert reason in capsys.readouterr().err
        assert {path for path in runs[0].rglob("*")} == before
