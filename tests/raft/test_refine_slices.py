"""A refinement goes through its rows slice by slice: what comes of them is the same, and memory holds one slice."""

import re

import pytest

from raft.errors import EngineError
from raft.refine.pipeline import refine_rows
from raft.rows import normalize_rows
from raft.runs import Run
from tests.raft.test_refine_pipeline import Number, Talker, contents, lines, make_rows, models, numbered, said, settings


class NumberOrHalf(Number):
    """A reference, which carries no number, has 0.5."""

    def value(self, candidate):
        return 0.5 if candidate.text == candidate.reference else super().value(candidate)


def some_fail(stage, prompt, number):
    if "is b?" in prompt or (stage == "fuse" and "is h?" in prompt):
        return None
    return numbered(stage, prompt, number)


def refined(folder, say, slice_rows, n=20, **options):
    rows = normalize_rows(make_rows(n))
    chosen = settings(margin=0.2)
    given = models(Talker(say), chosen, judges=[NumberOrHalf()])
    return refine_rows(rows, given, Run(folder), chosen, progress=False, slice_rows=slice_rows, **options)


@pytest.mark.parametrize("size", [1, 6, 7, 19])
def test_slices_change_nothing_that_comes_of_the_rows(tmp_path, size):
    likelihood = {"nll": lambda chats, answers: [float(len(answer)) for answer in answers]}
    whole = refined(tmp_path / "whole", some_fail, 20, **likelihood)
    parts = refined(tmp_path / "parts", some_fail, size, **likelihood)
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")
    assert (parts.rows, parts.kept) == (whole.rows, whole.kept) == (20, whole.kept) and 0 < whole.kept < 20
    reasons = {
        reason for line in lines(tmp_path / "parts", "fused") for found in line["rejected"]["fuse"] for reason in found
    }
    assert "margin" in reasons
    for one, other in zip(whole.stages, parts.stages, strict=True):
        assert (one.stage, one.rows, one.new, one.passed, one.failed, one.tokens) == (
            other.stage, other.rows, other.new, other.passed, other.failed, other.tokens,
        )  # fmt: skip


def test_a_row_is_done_before_those_of_the_next_slice_begin(tmp_path):
    asked = []

    def say(stage, prompt, number):
        asked.append((ord(re.search("What is (.)", prompt)[1]) - ord("a")) // 6)  # the slice
        return said(stage, 900)

    refined(tmp_path, say, 6)
    assert asked == sorted(asked) and set(asked) == {0, 1, 2, 3}


def test_a_run_that_is_stopped_in_a_later_slice_goes_on_there(tmp_path):
    def stops(stage, prompt, number):
        if "is o?" in prompt and stage == "fuse":
            raise EngineError("gone")
        return some_fail(stage, prompt, number)

    with pytest.raises(EngineError):
        refined(tmp_path / "stopped", stops, 6)
    folder = tmp_path / "stopped" / "refine"
    assert not (folder / "fused.jsonl").exists() and not list(folder.glob("*.tmp"))
    (folder / ".fused.jsonl.123.tmp").write_text("of a run that was killed")
    done = {line["id"] for line in lines(tmp_path / "stopped", "rewrite")}
    assert done == {f"r{i}" for i in range(18)}  # of the three slices that have begun
    again = refined(tmp_path / "stopped", some_fail, 6)
    assert again.stages[0].new == 2 and not list(folder.glob(".*.tmp"))
    refined(tmp_path / "whole", some_fail, 20)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_each_stage_is_one_line_for_all_slices(tmp_path, capsys):
    rows = normalize_rows(make_rows(20))
    chosen = settings(batch_size=3)
    refine_rows(rows, models(Talker(numbered), chosen), Run(tmp_path), chosen, slice_rows=6)
    printed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("refine:")]
    assert [line.split(":")[1].strip() for line in printed] == ["rewrite", "filter", "fuse"]
    assert all("20 rows in" in line for line in printed[:2])
