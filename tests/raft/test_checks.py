"""Every kind of check, with outputs that obey and outputs that do not."""

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raft.errors import InputError
from raft.evaluate.checks import KINDS, count_phrase, has_phrase, needs_answer, normalize, score, token_f1, validate

CASES = [
    # check, outputs that obey, outputs that do not
    ({"kind": "answer", "accept": ["blue whale"]}, ["A Blue-Whale!", "blue  whale"], ["blue whales", "whale blue", ""]),
    ({"kind": "answer", "accept": ["red", "two"]}, ["two red apples"], ["red", "two", "reddish two"]),
    ({"kind": "answer", "accept": ["9"], "reject": ["8", "10"]}, ["It is 9."], ["8 or 9", "9, not 10", "90"]),
    ({"kind": "answer", "reject": ["no"]}, ["yes", "nothing"], ["No.", "...", ""]),
    ({"kind": "answer", "accept": ["中国"]}, ["他在中国住"], ["他在日本住"]),
    ({"kind": "upper"}, ["ABC 1!"], ["ABc", "123", "abc"]),
    ({"kind": "lower"}, ["abc 1!"], ["aBc", "123"]),
    ({"kind": "words", "n": 3}, ["a b c", "it's - well done", "a\nb c."], ["a b", "a b c d", ""]),
    ({"kind": "starts_with", "text": "Well"}, ["Well, yes", "well then", "Well"], ["Wellness", "Oh well", ""]),
    ({"kind": "starts_with", "text": "thank you"}, ["Thank you."], ["Thank  goodness"]),
    ({"kind": "ends_with", "text": "that is all"}, ["a b. That is all.", "“that is all!”"], ["that is all folks", ""]),
    ({"kind": "ends_with", "text": "end."}, ["the end"], ["the weekend", "ending"]),
    ({"kind": "bullets", "n": 2}, ["- a\n- b", "Two:\n- a\n- b"], ["- a", "- a\n- b\n- c", "* a\n* b", "- a\n- "]),
    ({"kind": "numbered", "n": 2}, ["1. a\n2. b", "Two\n1. a\n2. b"], ["1. a", "2. a\n1. b", "1. a\n3. b", "1) a"]),
    ({"kind": "quoted"}, ["“a b”", '"a"'], ["a", '"a', '"a" and "b"', '""', '"']),
    ({"kind": "without", "word": "red"}, ["reddish", "blue"], ["a Red one", ""]),
    ({"kind": "contains", "word": "no"}, ["no"], ["nothing"]),
    ({"kind": "contains", "word": "no", "n": 3}, ["no no no", "No, no! No?"], ["no no", "nonono"]),
    ({"kind": "commas", "n": 3}, ["a, b, c", "a,b,c"], ["a, b", "a, b, c, d", "a,, b", "a, b,"]),
    ({"kind": "all", "checks": [{"kind": "upper"}, {"kind": "words", "n": 2}]}, ["A B"], ["a b", "A"]),
]


@pytest.mark.parametrize(
    "check, text, expected",
    [(check, text, float(i == 0)) for check, *lists in CASES for i, texts in enumerate(lists) for text in texts],
)
def test_check(check, text, expected):
    assert score(check, text) == expected
    assert score(check, f" {text}\n") == expected  # blanks around an output never matter


def test_every_kind_has_cases():
    assert {check["kind"] for check, *_ in CASES} == set(KINDS) - {"f1"}


@pytest.mark.parametrize(
    "prediction, reference, expected",
    [
        ("the cat sat", "cat sat down", 0.8),  # precision 2/2, recall 2/3
        ("The Cat!", "a cat", 1.0),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("no no", "no", 2 / 3),  # words are a multiset: precision 1/2
        ("don't", "dont", 1.0),
        ("<=", "<=", 1.0),
        (">=", "<=", 0.0),
        ("", "the", 0.0),
    ],
)
def test_f1(prediction, reference, expected):
    assert token_f1(prediction, reference) == pytest.approx(expected)
    assert score({"kind": "f1"}, prediction, answer=reference) == pytest.approx(expected)


def test_f1_needs_an_answer():
    with pytest.raises(InputError, match="this row has none"):
        score({"kind": "f1"}, "text")
    nested = {"kind": "all", "checks": [{"kind": "upper"}, {"kind": "f1"}]}
    assert needs_answer(nested) and not needs_answer({"kind": "upper"})
    assert score(nested, "CAT", answer="cat") == 1.0


@pytest.mark.parametrize(
    "check, words",
    [
        ({"kind": "wrods", "n": 2}, ["unknown kind 'wrods'", "did you mean 'words'?"]),
        ({}, ["unknown kind None"]),
        ({"kind": ["upper"]}, ["unknown kind ['upper']"]),
        ("upper", ["expected an object", "'upper'"]),
        ({"kind": "words"}, ["'n'", "a whole number above 0", "None"]),
        ({"kind": "words", "n": True}, ["got True"]),
        ({"kind": "contains", "word": "a", "n": 0}, ["got 0"]),
        ({"kind": "starts_with", "text": "?!"}, ["at least one word", "'?!'"]),
        ({"kind": "answer"}, ["'accept' or 'reject'"]),
        ({"kind": "answer", "accept": "red"}, ["a list of strings", "'red'"]),
        ({"kind": "answer", "accept": ["red", ""]}, ["at least one word each"]),
        ({"kind": "all", "checks": []}, ["a list of checks"]),
        ({"kind": "all", "checks": [{"kind": "upper"}, {"kind": "no"}]}, ["checks[1]", "unknown kind 'no'"]),
    ],
)
def test_bad_checks_are_refused_in_one_line(check, words):
    with pytest.raises(InputError) as error:
        validate(check, where="d.jsonl, line 3")
    message = str(error.value)
    assert message.startswith("d.jsonl, line 3") and "\n" not in message
    assert all(word in message for word in words), message


def test_null_fields_of_columnar_files_are_absent_fields():
    assert score({"kind": "answer", "accept": ["a"], "reject": None}, "a") == 1.0
    assert score({"kind": "contains", "word": "a", "n": None}, "a") == 1.0


@given(st.text())
@example("İstanbul")
@example("Cafe\u0301")
def test_normalize_is_idempotent_and_plain(text):
    once = normalize(text)
    assert normalize(once) == once
    assert not set(once) & set(string.punctuation) and "  " not in once and once == once.strip()


@given(st.text(), st.text("ab ,.!", max_size=4))
def test_case_and_punctuation_around_a_phrase_do_not_matter(text, around):
    assert normalize(f"...{text}!") == normalize(text)
    assert has_phrase(f"x {text} y", text) == bool(normalize(text))
    assert 0.0 <= token_f1(text, f"{text} {around}") <= 1.0


@given(st.lists(st.sampled_from(["red", "blue", "green"]), min_size=1, max_size=8))
def test_counts_agree_with_the_list_they_came_from(words):
    text = ", ".join(words)
    assert count_phrase(text, "red") == words.count("red")
    assert score({"kind": "words", "n": len(words)}, text) == 1.0
    assert score({"kind": "commas", "n": len(words)}, text) == 1.0
    assert score({"kind": "commas", "n": len(words) + 1}, text) == 0.0
    lines = "\n".join(f"{i}. {word}" for i, word in enumerate(words, 1))
    assert score({"kind": "numbered", "n": len(words)}, lines) == 1.0


@given(st.text(max_size=30), st.sampled_from([check for check, *_ in CASES]))
def test_any_output_gets_a_score_of_zero_or_one(text, check):
    assert score(check, text) in (0.0, 1.0)
