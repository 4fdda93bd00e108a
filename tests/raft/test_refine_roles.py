"""Who does what in the refinement: models by name, judges that cost something, failures that are tried again."""

import json
import math
import os
import resource

import pytest

from raft.chat.pool import ChatPool, check_names
from raft.errors import ConfigError, ModelError
from raft.judges import Program, Score
from raft.judges.agreement import Agreement
from raft.refine import refine
from raft.refine.context import Models
from raft.refine.parts import merge_parts, split_rows
from raft.rows import normalize_rows
from raft.runs import JsonlAppender, Run, read_json, read_jsonl
from raft.settings import RefineSettings
from tests.raft.test_refine_pipeline import Angles, Talker, heard, lines, make_rows, models, run_it, said, settings

SERVER = "large@http://127.0.0.1:9/v1"


def test_roles_with_one_name_share_a_model_and_nothing_is_made_before_it_is_used(tmp_path):
    made = []
    pool = ChatPool(RefineSettings(fuser=SERVER), str(tmp_path), lambda: made.append("engine"))
    chosen = RefineSettings(fuser=SERVER, judges=["programs", "local", SERVER])
    found = Models.named(chosen, pool, Angles())
    assert found.rewriter is pool["local"] and found.fuser is pool[SERVER] and found.fuser.name == "large"
    assert [judge.name for judge in found.judges] == ["coverage", "faithfulness", "form", "local", "large"]
    assert pool["local"].name in found.judges[3].version and "large" in found.judges[4].version
    assert made == []
    pool.close()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"fuser": "m@http:/x"}, ConfigError, "refine.fuser: expected MODEL@BASE_URL"),
        ({"rewriter": "m@https://x/v1"}, ConfigError, "refine.rewriter: .* the environment variable NO_KEY"),
        (
            {"judges": ["programs", "m@http://u:p@x/v1"]},
            ConfigError,
            "refine.judges: .* keys come from the environment",
        ),
        ({"fuser": "/no/such/model"}, ModelError, "refine.fuser: /no/such/model"),
        ({"judges": [SERVER, SERVER.replace("9", "8")]}, ConfigError, "refine.judges: expected each judge once"),
    ],
)
def test_names_that_cannot_be_are_refused_in_one_line(changes, error, words):
    with pytest.raises(error, match=words) as raised:
        check_names(RefineSettings(api_key_env="NO_KEY", **changes))
    assert "\n" not in str(raised.value) and "u:p" not in str(raised.value)


class Paid:
    """A judge that remembers what it was asked."""

    version = "1"

    def __init__(self, name="paid", give=lambda candidate: Score(0.9, "fine")):
        self.name, self.give, self.asked = name, give, []

    def score(self, candidates):
        self.asked += [(one.row_id, one.text) for one in candidates]
        return [self.give(one) for one in candidates]


class Free(Program):
    name, version = "free", "1"

    def value(self, candidate):
        return 0.8


def test_a_judge_that_costs_something_sees_only_texts_that_nothing_else_speaks_against(tmp_path):
    paid = Paid()
    fused, _ = run_it(tmp_path, make_rows(12), judges=[Free(), paid], rounds=1)
    passing = {
        (line["id"], line["text"])
        for name in ("rewrite", "fuse")
        for line in lines(tmp_path, name)
        if heard(line["text"]) >= 400
    }
    assert set(paid.asked) == passing and len(paid.asked) == len(passing)
    judged = lines(tmp_path, "judge")
    assert len([line for line in judged if line["judge"] == "free"]) > len(passing)
    assert len([line for line in judged if line["judge"] == "paid"]) == len(passing)
    assert {tuple(row["judge_scores"]) for row in fused if row["kept"]} == {(0.8, 0.9)}


def test_a_further_judge_costs_its_own_calls_alone(tmp_path):
    first, second = Paid("first"), Paid("second")
    run_it(tmp_path, make_rows(6), judges=[first], rounds=1)
    spent = len(first.asked)
    run_it(tmp_path, make_rows(6), judges=[second, first], rounds=1)
    assert spent and len(first.asked) == spent and len(second.asked) == spent


def test_a_score_that_failed_for_now_is_asked_for_again_and_one_that_lasts_is_not(tmp_path):
    def good(stage, *_):
        return said(stage, 900)

    passing = Paid(give=lambda one: Score(None, problem="HTTP 500", lasting=False))
    fused, _ = run_it(tmp_path / "now", make_rows(2), good, judges=[Free(), passing], rounds=1, min_score=0.4)
    assert [row["judge_scores"] for row in fused] == [[0.8, 0.0]] * 2
    again = Paid()
    fused, engine = run_it(tmp_path / "now", make_rows(2), good, judges=[Free(), again], rounds=1, min_score=0.4)
    assert [row["judge_scores"] for row in fused] == [[0.8, 0.9]] * 2 and not engine.calls
    lasting = Paid(give=lambda one: Score(None, problem="no verdict"))
    run_it(tmp_path / "lasts", make_rows(2), good, judges=[Free(), lasting], rounds=1, min_score=0.4)
    run_it(tmp_path / "lasts", make_rows(2), good, judges=[Free(), again := Paid()], rounds=1, min_score=0.4)
    assert not again.asked


def test_flags_reach_the_row_the_diagnostics_and_the_log(tmp_path, caplog):
    judge = Paid(give=lambda one: Score(0.9, flag="dear judge" if one.row_id == "r1" else None))
    fused, _ = run_it(tmp_path, make_rows(3), lambda stage, *_: said(stage, 900), judges=[judge], rounds=1)
    assert [row.get("judge_flag") for row in fused] == [None, "dear judge", None]
    assert read_json(tmp_path / "refine" / "diagnostics.json")["flagged"] == 1
    assert "1 rows have words that speak to a judge" in caplog.text and "row r1: dear judge" in caplog.text


def test_failed_texts_are_tried_again_on_request_with_other_seeds(tmp_path):
    seen = []

    def say(stage, prompt, number):
        if "is a?" in prompt:
            seen.append(number)
            return None if len(seen) < 3 else said(stage, 900)
        return said(stage, 900)

    def go(**options):
        given = models(Talker(say))
        return refine(make_rows(2), given, Run(tmp_path), settings(), progress=False, **options), given

    assert go()[0][0]["rewritten"] is None
    assert [line["id"] for line in lines(tmp_path, "failed")] == ["r0"]
    go()
    assert len(seen) == 1  # a failure that lasts is not asked for by itself
    go(retry_failed=True)
    assert len(seen) == 2 and lines(tmp_path, "rewrite")[-1]["retry"] == 1
    fused, _ = go(retry_failed=True)
    assert fused[0]["kept"] and len(set(seen[:3])) == 3 and lines(tmp_path, "failed") == []
    calls = len(seen)
    assert go()[0] == fused and go(retry_failed=True)[0] == fused and len(seen) == calls


def test_scores_without_a_value_are_asked_for_again_on_request(tmp_path):
    def go(judge, **options):
        given = models(Talker(lambda stage, *_: said(stage, 900)), judges=[Free(), judge])
        return refine(make_rows(2), given, Run(tmp_path), settings(rounds=1), progress=False, **options)

    go(Paid(give=lambda one: Score(None, problem="no verdict")))
    go(again := Paid())
    assert not again.asked
    assert {tuple(row["judge_scores"]) for row in go(again, retry_failed=True)} == {(0.8, 0.9)} and again.asked


def test_parts_take_the_lines_of_their_rows_and_give_back_what_is_new(tmp_path):
    rows = normalize_rows(make_rows(10))

    def write(path, *lines):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def line(row, text, failed=None, key="k"):
        return {"id": f"r{row}", "key": key, "text": text, "failed": failed}

    write(tmp_path / "rewrite.jsonl", line(0, "old"), line(9, None, "cut"), line("gone", "of a row that is gone"))
    parts = split_rows(tmp_path, rows, batch_size=2, workers=1)
    assert [len(part) for _, part in parts] == [4, 4, 2]
    assert [[one["id"] for one in read_jsonl(folder / "rewrite.jsonl")] for folder, _ in parts] == [["r0"], [], ["r9"]]
    with JsonlAppender(parts[0][0] / "rewrite.jsonl") as store:
        store.append(line(1, "new"))
        store.append(line(0, None, "worse"))
    with JsonlAppender(parts[2][0] / "rewrite.jsonl") as store:
        store.append(line(9, "better"))
    (parts[1][0] / "fuse.jsonl").write_text('{"id": "r4", "key": "k", "text": "torn')
    merge_parts(tmp_path)
    found = [(one["id"], one["text"]) for one in read_jsonl(tmp_path / "rewrite.jsonl")]
    assert found == [("r0", "old"), ("r9", None), ("rgone", "of a row that is gone"), ("r1", "new"), ("r9", "better")]
    assert read_jsonl(tmp_path / "fuse.jsonl") == [] and not (tmp_path / "parts").exists()
    merge_parts(tmp_path)
    assert len(read_jsonl(tmp_path / "rewrite.jsonl")) == 5


def test_many_parts_open_few_files(tmp_path):
    rows = normalize_rows(make_rows(130))
    with JsonlAppender(tmp_path / "judge.jsonl") as store:
        for row in rows:
            store.append({"id": row["id"], "key": "k"})
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 100, before[1]))
    try:
        parts = split_rows(tmp_path, rows, batch_size=1, workers=64)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(parts) == 130
    for folder, part in parts:
        assert [line["id"] for line in read_jsonl(folder / "judge.jsonl")] == [row["id"] for row in part]


def agreement(table):
    found = Agreement()
    for scores in table:
        found.add(scores)
    return found.alpha


def test_agreement_of_judges():
    assert agreement([(0.1, 0.1), (0.5, 0.5), (0.9, 0.9)]) == pytest.approx(1.0)
    assert agreement([(0.1, 0.9), (0.9, 0.1)]) < 0
    # Krippendorff 2011, by hand: disagreement observed 0.02, expected 0.1 (of the pairs of 0, 0.2, 0.4, 0.6).
    table = [(0.0, 0.2), (0.4, 0.6)]
    values = [value for pair in table for value in pair]
    expected = sum((a - b) ** 2 for a in values for b in values) / (4 * 3)
    observed = sum(2 * (a - b) ** 2 for a, b in table) / 4
    assert agreement(table) == pytest.approx(1 - observed / expected)
    almost = [(1.0, 1.0, 1.0), (1.0, 1.0, math.nextafter(1, 0))]
    assert agreement(almost) is None and agreement([*almost, (0.2, 0.3, 0.2)]) > 0.9
    assert agreement([]) is agreement([(0.5,), (0.6,)]) is agreement([(0.5, 0.5)] * 3) is None


def test_stored_lines_name_their_judge(tmp_path):
    run_it(tmp_path, make_rows(2), judges=[Free(), Paid()], rounds=1)
    assert {line["judge"] for line in read_jsonl(tmp_path / "refine" / "judge.jsonl")} == {"free", "paid"}
