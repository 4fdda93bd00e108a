"""The programmatic judges on texts that a person would score alike, and the words they count."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.judges import Candidate, Coverage, Faithfulness, Form, Score, default_judges, majority, mean
from raft.judges.base import checked
from raft.text import content_words, ngram_f1, stem, words

ROW = {
    "question": "Who has kept the mill at Oakham?",
    "answer": "Keeper of Oakham mill: Anna Reed, since 1902.",
    "rewritten": "Anna Reed has kept the mill at Oakham since 1902.",
}
GOOD = "Anna Reed has been the keeper of the mill at Oakham since 1902, and she kept it."


def one(judge, candidate, row=ROW):
    """The value that one judge gives one text."""
    asked = Candidate("r", row["question"], row["answer"], candidate, row["rewritten"])
    [score] = judge.score([asked])
    assert (score.reason, score.problem) == (None, None)
    return score.value


def scores(candidate, row=ROW):
    return {judge.name: one(judge, candidate, row) for judge in default_judges()}


def test_a_good_candidate_is_accepted_by_the_default():
    found = scores(GOOD)
    assert found == {"coverage": 1.0, "faithfulness": 1.0, "form": 1.0}


def test_a_lost_fact_costs_coverage():
    # Without "reed" and "1902": two of the answer's {keep(er), oakham, mill, anna, reed, 1902, sinc} are gone.
    found = scores("Anna has been the keeper of the mill at Oakham since then, and kept it.")
    answer, rewritten = content_words(ROW["answer"]), content_words(ROW["rewritten"])
    assert len(answer) == 7 and len(rewritten) == 7
    assert found["coverage"] == pytest.approx((5 / 7 + 5 / 7) / 2)
    assert found["faithfulness"] == found["form"] == 1.0


def test_an_invented_fact_costs_faithfulness():
    invented = content_words(GOOD[:-1] + " with her brother Paul.") - content_words(GOOD)
    assert invented == {"brother", "paul"}
    found = scores(GOOD[:-1] + " with her brother Paul.")
    assert found["coverage"] == 1.0 and found["faithfulness"] == pytest.approx(8 / 10)


def test_what_only_the_rewriting_says_is_no_evidence():
    candidate = "Anna Reed has kept the old mill at Oakham since 1902."
    row = {**ROW, "rewritten": candidate}
    # Of {anna, reed, kept, old, mill, oakham, sinc, 1902} neither question nor reference has "old".
    assert one(Faithfulness(), candidate, row) == one(Faithfulness(), candidate) == 7 / 8


def test_a_changed_number_or_a_negation_is_seen_by_both():
    for wrong in (GOOD.replace("1902", "1920"), GOOD.replace("kept it", "didn't keep it")):
        assert min(scores(wrong)["coverage"], scores(wrong)["faithfulness"]) < 1.0


@pytest.mark.parametrize(
    "candidate, expected",
    [
        ("Anna Reed keeps the mill at Oakham.", 1.0),
        ("“Anna Reed keeps the mill.”", 1.0),
        ("anna Reed keeps the mill at Oakham.", 0.5),
        ("Anna Reed keeps the mill at Oakham", 0.5),
        ("keeper of the mill: Anna", 0.0),
        ("Anna.", 0.25),  # half of the shorter answer is four words
        ("", 0.0),
        ("?!", 0.0),
        ("The mill the mill the mill the mill the mill.", 2 / 8 / 0.8),  # 8 trigrams, 2 of them distinct
    ],
)
def test_form(candidate, expected):
    assert one(Form(), candidate) == pytest.approx(expected)


def test_form_wants_a_length_in_proportion():
    row = {"question": "Q", "answer": "one two three four", "rewritten": "one two three four five six"}
    numerals = [f"w{i}" for i in range(40)]
    for n, expected in ((1, 0.5), (2, 1.0), (12, 1.0), (24, 0.5), (40, 0.3)):
        assert one(Form(), "A" + " ".join(numerals[:n]) + ".", row) == pytest.approx(expected), n


def test_an_answer_that_repeats_itself_may_be_repeated():
    row = {"question": "How does one laugh?", "answer": "Ha ha ha ha ha ha.", "rewritten": "Ha ha ha ha ha ha."}
    assert scores("Ha ha ha ha ha ha.", row) == {"coverage": 1.0, "faithfulness": 1.0, "form": 1.0}


def test_short_answers_of_function_words_alone_are_still_compared():
    row = {"question": "Where?", "answer": "There.", "rewritten": "Over there."}
    assert one(Coverage(), "Over there.", row) == 1.0
    assert one(Coverage(), "In here.", row) == 0.0
    assert one(Faithfulness(), "In here.", row) == 0.0


def test_without_a_rewriting_the_reference_alone_counts():
    asked = Candidate("r", ROW["question"], ROW["answer"], ROW["answer"])
    assert [judge.score([asked])[0].value for judge in (Coverage(), Faithfulness())] == [1.0, 1.0]
    assert 0 < Form().score([asked])[0].value <= 1


def test_a_judge_scores_many_candidates_in_their_order():
    asked = [Candidate("r", ROW["question"], ROW["answer"], text, ROW["rewritten"]) for text in (GOOD, "", "Anna.")]
    for judge in default_judges():
        assert judge.score(asked) == [Score(one(judge, each.text)) for each in asked] and judge.score([]) == []


def test_reducers_count_a_missing_value_as_a_reject():
    missing = Score(None, problem="no verdict")
    assert mean([Score(1.0), Score(0.5), missing]) == 0.5
    for found, expected in (
        ([0.5, 0.9, 0.1], True),
        ([0.4, 0.9, 0.1], False),
        ([0.9, 0.1], False),  # half is not more than half
        ([0.9, 0.9, None], True),
        ([0.9, None], False),
    ):
        assert majority([missing if value is None else Score(value) for value in found]) == expected, found
    assert not majority([Score(0.6)], least=0.7)


@pytest.mark.parametrize("value", [float("nan"), 1.5, -0.1, "0.9", None])
def test_a_value_out_of_range_is_no_value(value):
    found = checked(Score(value, "because"))
    assert found == Score(None, "because", f"expected a number from 0 to 1, found {value!r}")


def test_what_a_judge_says_itself_stays():
    for score in (Score(1, "good"), Score(0.25), Score(None, "long text", "no verdict in it")):
        assert checked(score) == score
    assert checked(0.5) == Score(None, problem="expected a Score, found 0.5")


@pytest.mark.parametrize(
    "forms",
    [
        ["move", "moves", "moved", "moving"],
        ["carry", "carries", "carried"],
        ["city", "cities", "city's"],
        ["stop", "stops", "stopped", "stopping"],
        ["box", "boxes", "boxed"],
        ["process", "processes", "processed"],
        ["speed", "speeds"],
        ["fall", "falls", "falling"],
        ["agree", "agrees", "agreed"],
    ],
)
def test_forms_of_a_word_are_one(forms):
    assert len({stem(form) for form in forms}) == 1


OTHER_WORDS = ("mill", "miller", "bus", "king", "ring", "thing", "1902", "1920", "3.5", "glass", "grass")


def test_other_words_are_not():
    assert len({stem(word) for word in OTHER_WORDS}) == len(OTHER_WORDS)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("It isn't, can't won't.", ["it", "is", "not", "can", "not", "will", "not"]),
        ("“Don’t” 1,000 at 3.5%", ["do", "not", "1000", "at", "3.5"]),
        ("O'Neill's B12-test", ["o'neill's", "b12", "test"]),
        ("日本語 ok", ["日", "本", "語", "ok"]),
        ("हिन्दी भाषा।", ["हिन्दी", "भाषा"]),
        ("Straße, Été", ["straße", "été"]),
        ("-- !? _", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


def test_ngram_f1():
    assert ngram_f1("the cat sat", "The cat ran.", 1) == pytest.approx(2 * 2 / 6)
    assert ngram_f1("the cat sat", "The cat ran.", 2) == pytest.approx(2 * 1 / 4)
    assert ngram_f1("no no no", "no", 1) == pytest.approx(2 * 1 / 4)  # as multisets
    assert ngram_f1("a", "b", 2) is None
    assert ngram_f1("a b", "a", 2) == 0.0


@given(st.text(), st.text(), st.text(), st.text())
def test_any_texts_have_scores_in_range(question, answer, rewritten, candidate):
    row = {"question": question, "answer": answer, "rewritten": rewritten}
    assert all(0 <= score <= 1 for score in scores(candidate, row).values())


@given(st.text())
def test_an_answer_covers_itself_and_is_faithful_to_itself(text):
    row = {"question": "", "answer": text, "rewritten": text}
    assert one(Coverage(), text, row) == 1.0
    assert one(Faithfulness(), text, row) == float(bool(words(text)))
