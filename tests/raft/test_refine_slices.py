"""A refinement goes through its rows slice by slice: what comes of them is the same, and memory holds one slice."""

import re
from dataclasses import replace
from itertools import groupby

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from raft.errors import EngineError
from raft.judges import Program
from raft.refine.pipeline import refine_rows
from raft.refine.slices import has_wording, slices
from raft.rows import normalize_rows
from raft.runs import Run, read_json
from tests.raft.test_refine_pipeline import Number, Talker, contents, lines, make_rows, models, numbered, said, settings

CALL = {"tool_calls": [{"function": {"name": "weather", "arguments": {}}}]}


class NumberOrHalf(Number):
    """A reference, which carries no number, has 0.5."""

    def value(self, candidate):
        return 0.5 if candidate.text == candidate.reference else super().value(candidate)


class Length(Program):
    """A second judge, so that there is an agreement."""

    name, version = "length", "1"

    def value(self, candidate):
        return len(candidate.text) % 7 / 7


def with_tools(rows):
    """With rows between them, and at their end, whose answers have no wording."""
    called = [{"id": f"tool{i}", "question": "Weather?", "answer": "", "answer_turn": CALL} for i in range(9)]
    return [*rows[:2], *called[:3], *rows[2:15], called[3], *rows[15:], *called[4:]]


def some_fail(stage, prompt, number):
    if "is b?" in prompt or (stage == "fuse" and "is h?" in prompt):
        return None
    return numbered(stage, prompt, number)


def refined(folder, say, slice_rows, n=20, **options):
    rows = with_tools(make_rows(n))
    chosen = settings(margin=0.2)
    given = models(Talker(say), chosen, judges=[NumberOrHalf(), Length()])
    return refine_rows(
        normalize_rows(rows), given, Run(folder), chosen, progress=False, slice_rows=slice_rows, **options
    )


@pytest.mark.parametrize("size", [1, 6, 7, 15])
def test_slices_change_nothing_that_comes_of_the_rows(tmp_path, size):
    likelihood = {"nll": lambda chats, answers: [float(len(answer)) for answer in answers]}
    whole = refined(tmp_path / "whole", some_fail, 20, **likelihood)
    parts = refined(tmp_path / "parts", some_fail, size, **likelihood)
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")
    assert (parts.rows, parts.kept) == (whole.rows, whole.kept) == (29, whole.kept) and 0 < whole.kept < 20
    assert read_json(tmp_path / "parts" / "refine" / "diagnostics.json")["agreement"] is not None
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
    assert not (folder / "fused.jsonl").exists() and not list(folder.glob(".*.tmp"))
    done = {line["id"] for line in lines(tmp_path / "stopped", "rewrite")}
    assert done == {f"r{i}" for i in range(18)}  # of the three slices that have begun
    again = refined(tmp_path / "stopped", some_fail, 6)
    assert again.stages[0].new == 2
    refined(tmp_path / "whole", some_fail, 20)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_each_stage_is_one_line_for_all_slices(tmp_path, capsys):
    rows = normalize_rows(with_tools(make_rows(20)))
    chosen = settings(batch_size=3)
    refine_rows(rows, models(Talker(numbered), chosen), Run(tmp_path), chosen, slice_rows=6)
    printed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("refine:")]
    assert [line.split(":")[1].strip() for line in printed] == ["rewrite", "filter", "fuse"]
    assert all("20 rows in" in line for line in printed[:2])


@drawn(st.lists(st.booleans(), max_size=40), st.integers(1, 5), st.integers(1, 20))
def test_slices_are_whole_batches_of_rows_with_a_wording(wordings, batch_size, size):
    turn = {False: CALL, True: {}}
    rows = [{"id": str(i), "answer_turn": turn[wording]} for i, wording in enumerate(wordings)]
    found = list(slices(rows, batch_size, size))
    assert [row for part in found for row in part] == rows
    counts = [sum(map(has_wording, part)) for part in found]
    whole = -(-size // batch_size) * batch_size
    assert all(count == whole for count in counts[:-1]) and all(count <= whole for count in counts)
    assert all(counts) or len(found) == 1


def test_one_row_has_numbers_too(tmp_path):
    refined = refine_rows(normalize_rows(make_rows(1)), models(Talker(numbered)), Run(tmp_path), settings())
    found = read_json(tmp_path / "refine" / "diagnostics.json")
    assert [type(found[name]) for name in ("rows", "kept", "flagged")] == [int] * 3 and type(refined.kept) is int


def test_models_make_room_for_one_another_in_each_slice(tmp_path):
    did = []

    def say(stage, prompt, number):
        did.append(stage)
        return said(stage, 900)

    chosen = settings()
    given = replace(models(Talker(say), chosen), make_room=lambda: did.append("room"))
    refine_rows(normalize_rows(make_rows(6)), given, Run(tmp_path), chosen, progress=False, slice_rows=3)
    assert [name for name, _ in groupby(did)] == ["rewrite", "room", "fuse", "room"] * 2
