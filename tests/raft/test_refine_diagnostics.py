"""The numbers of diagnostics.json against ones worked out by hand."""

import json
import math
from typing import ClassVar

import numpy as np
import pytest

from raft.refine.acceptance import REASONS
from raft.refine.diagnostics import character_classes, diagnose, summary


class Plane:
    """Each text has its own angle."""

    name = "plane"
    degrees: ClassVar = {
        "The cat sat.": 0,
        "A cat sat.": 60,
        "The cat sat down.": 30,
        "Dogs bark": 0,
        "Dogs do bark": 90,
        "Dogs bark!": 90,
    }

    def encode(self, texts):
        angles = np.radians([self.degrees[text] for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], -1)


def line(answer, rewritten, fused, similarity, kept, scores, rounds, rewrite=(), fuse=()):
    names = ("answer", "rewritten", "fused_answer", "similarity", "kept", "judge_scores", "rounds")
    rejected = {"rewrite": list(rewrite), "fuse": [list(found) for found in fuse]}
    return {
        **dict(zip(names, (answer, rewritten, fused, similarity, kept, scores, rounds), strict=True)),
        "rejected": rejected,
    }


FUSED = [
    line("The cat sat.", "A cat sat.", "The cat sat down.", 0.5, True, [1.0, 0.5], 1, fuse=[[]]),
    line("Dogs bark", "Dogs do bark", "Dogs bark!", 0.9, True, [0.5, 0.5], 3, fuse=[["loop"], ["loop", "echo"], []]),
    line("x", "y", "x", 0.1, False, [], 0, rewrite=["similarity", "numbers invented"]),
    line("z", None, "z", None, False, [], 0),
]
ROWS = [{"prompt": [{"role": "user", "content": f"q{i}"}]} for i in range(4)]


def numbers(**options):
    settings = {"judges": ["a", "b"], "unusable": {"b": 2}, "failed": 1, **options}
    return diagnose(ROWS, FUSED, Plane(), **settings)


def test_shares_and_scores():
    found = numbers()
    assert (found["rows"], found["kept"], found["kept_share"], found["failed"]) == (4, 2, 0.5, 1)
    assert found["similarity"]["n"] == 3 and found["similarity"]["mean"] == pytest.approx(0.5)
    assert found["rounds"]["n"] == 2 and found["rounds"]["mean"] == 2.0
    assert found["judges"]["a"]["mean"] == 0.75 and found["judges"]["b"]["mean"] == 0.5
    assert found["judges"]["a"]["unusable"] == 0 and found["judges"]["b"]["unusable"] == 2
    json.dumps(found, allow_nan=False)


def test_reasons():
    found = numbers()["reasons"]
    assert all(list(counts) == ["texts", "rejected", *REASONS] for counts in found.values())
    # The row that could not be compared has no text to count, and a candidate may have two reasons.
    assert {name: n for name, n in found["rewrite"].items() if n} == {
        "texts": 3,
        "rejected": 1,
        "similarity": 1,
        "numbers invented": 1,
    }
    assert {name: n for name, n in found["fuse"].items() if n} == {"texts": 4, "rejected": 2, "loop": 2, "echo": 1}


def test_embedding_distance():
    found = numbers()["embedding"]
    cos = {name: [math.cos(math.radians(x)) for x in angles] for name, angles in
           {"raw_refined": (30, 90), "raw_own": (60, 90), "own_refined": (30, 0)}.items()}  # fmt: skip
    for name, values in cos.items():
        assert found[name]["n"] == 2 and found[name]["mean"] == pytest.approx(sum(values) / 2, abs=1e-6)


def test_overlap_length_and_characters():
    found = numbers()
    # "the cat sat" / "the cat sat down": 3 of 3 and 4 words, 2 of 2 and 3 pairs; "dogs bark" is "dogs bark"
    assert found["overlap"]["1gram_f1"]["mean"] == pytest.approx((6 / 7 + 1) / 2)
    assert found["overlap"]["2gram_f1"]["mean"] == pytest.approx((4 / 5 + 1) / 2)
    assert found["length"]["raw_words"]["mean"] == 2.5 and found["length"]["refined_words"]["mean"] == 3.0
    assert found["length"]["shift_words"]["mean"] == 0.5
    assert found["length"]["ratio"]["mean"] == pytest.approx((4 / 3 + 1) / 2)
    # raw: 12 + 9 characters (2 upper, 15 lower, 3 spaces, 1 mark)
    # refined: 17 + 10 characters (2 upper, 19 lower, 4 spaces, 2 marks)
    characters = found["characters"]
    assert characters["lower"] == {"raw": pytest.approx(15 / 21), "refined": pytest.approx(19 / 27)}
    assert characters["punctuation"] == {"raw": pytest.approx(1 / 21), "refined": pytest.approx(2 / 27)}
    shares = [(2, 2), (15, 19), (3, 4), (1, 2)]
    assert characters["distance"]["value"] == pytest.approx(sum(abs(a / 21 - b / 27) for a, b in shares) / 2)


def test_character_classes():
    found = character_classes(["aB1 ", "日-\u200b", "é"])
    counts = {"lower": 2, "upper": 1, "letter": 1, "digit": 1, "space": 1, "punctuation": 1, "other": 1}
    assert found == counts and not character_classes([""])


def test_summary():
    assert summary([4, 1, 2, 3, 5]) == {
        "n": 5,
        "mean": 3.0,
        "p05": 1.2,
        "p25": 2.0,
        "p50": 3.0,
        "p75": 4.0,
        "p95": 4.8,
    }
    assert summary([]) == {"n": 0, "mean": None, "p05": None, "p25": None, "p50": None, "p75": None, "p95": None}


def test_nothing_kept_is_no_error():
    found = diagnose(ROWS[2:], FUSED[2:], Plane(), judges=["a"], unusable={}, failed=1, nll=lambda chats, answers: [])
    assert (
        found["kept_share"] == 0.0 and found["embedding"]["raw_refined"]["n"] == 0 and found["nll"]["shift"]["n"] == 0
    )
    json.dumps(found, allow_nan=False)


def test_style_shift_comes_from_the_callable():
    def nll(chats, answers):
        assert [chat[0]["content"] for chat in chats] == ["q0", "q1"] * 2
        assert answers == ["The cat sat.", "Dogs bark", "The cat sat down.", "Dogs bark!"]
        return [4.0, 2.0, 3.0, None]

    found = numbers(nll=nll)["nll"]
    assert (found["raw"]["mean"], found["refined"]["mean"], found["shift"]["mean"]) == (3.0, 3.0, -1.0)
    assert found["shift"]["n"] == 1

    def broken(chats, answers):
        raise RuntimeError("out of memory")

    assert numbers(nll=broken)["nll"] == {"failed": "RuntimeError: out of memory"}
    assert "nll" not in numbers()
