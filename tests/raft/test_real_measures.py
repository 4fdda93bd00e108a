"""Free answers against references by hand, and ROUGE-L against its own package."""

import random

import pytest

from raft.real.measures import content_recall, measure, rouge_l
from tests.raft.real_rows import LetterCounts


def test_one_of_each(monkeypatch):
    reference = "Sea legs go away within three days on land."
    found = measure(["Sea legs go away on land in three days.", reference, "  "], [reference] * 3, LetterCounts())
    assert found[1] == {"similarity": pytest.approx(1.0), "recall": 1.0, "f1": 1.0, "rouge_l": 1.0, "words": 9}
    assert found[2] == {"similarity": 0.0, "recall": 0.0, "f1": 0.0, "rouge_l": 0.0, "words": 0}
    near = found[0]
    assert near["recall"] == pytest.approx(7 / 8)  # all content words but "within"
    assert near["f1"] == pytest.approx(16 / 18)  # eight words in common of nine and nine
    assert near["rouge_l"] == pytest.approx(12 / 18)  # sea legs go away on land, or three days in its place
    assert 0.9 < near["similarity"] < 1


def test_only_empty_answers_need_no_embedding():
    assert measure([""], ["Sea legs."], embedder=None)[0]["similarity"] == 0.0


def test_recall_knows_other_forms_of_a_word():
    assert content_recall("The sailor was walking.", "Sailors walk") == 1.0


def test_rouge_l_as_its_package_has_it():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    rng = random.Random(0)
    words = ["sea", "Legs", "on", "land,", "3-day", "and", "été", "it's"]
    for _ in range(200):
        first, second = (" ".join(rng.choices(words, k=rng.randint(0, 12))) for _ in range(2))
        assert rouge_l(first, second) == pytest.approx(scorer.score(second, first)["rougeL"].fmeasure)
