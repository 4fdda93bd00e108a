"""Checks of an output by a program. A check is a small object in the row, `{"kind": NAME, ...}`.

No judge model is needed, so scores are exact, free and reproducible. An output without any letter or digit scores 0 in
every check but `f1`, so that an empty answer does not pass `without` or `reject`.
"""

import difflib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Required, TypedDict

from raft.errors import InputError
from raft.text import SPACELESS

# In scripts without spaces every character counts as a word, as in MLQA's scorer.
_WORD = re.compile(rf"[{SPACELESS}]|[^\s{SPACELESS}]+")
_NUMBERED_LINE = re.compile(r"(\d+)\. +\S")
_QUOTES = {"“": "”", '"': '"'}
_ENDING = " \t\n.!?\"'“”‘’"


def is_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


def normalize(text: str) -> str:
    """Lower case, accents composed (NFC), punctuation and symbols replaced by spaces, whitespace collapsed."""
    spaced = "".join(" " if is_punctuation(c) else c for c in unicodedata.normalize("NFC", text.lower()))
    return " ".join(spaced.split())


def has_phrase(text: str, phrase: str) -> bool:
    """Whether `phrase` occurs in `text` as whole words, both normalised."""
    return count_phrase(text, phrase) > 0


def count_phrase(text: str, phrase: str) -> int:
    """How often `phrase` occurs in `text` as whole words, both normalised; occurrences do not overlap."""
    # Doubled separators let neighbours ("no no") both match, since a match consumes the space on each side.
    haystack = "  ".join(_WORD.findall(normalize(text)))
    needle = "  ".join(_WORD.findall(normalize(phrase)))
    return f" {haystack} ".count(f" {needle} ") if needle else 0


def token_f1(prediction: str, reference: str) -> float:
    """Token F1 in [0, 1] as in SQuAD: lower case, punctuation and articles removed, words counted with repetitions."""
    expected = _squad_tokens(reference)
    if not expected:  # a reference such as "<=" has no words left: only the same string is right
        return float(prediction.strip().lower() == reference.strip().lower())
    given = _squad_tokens(prediction)
    common = sum((Counter(given) & Counter(expected)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(given), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def _squad_tokens(text: str) -> list[str]:
    text = unicodedata.normalize("NFC", text.lower())
    kept = "".join(c for c in text if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    return _WORD.findall(re.sub(r"\b(a|an|the)\b", " ", kept))


class Check(TypedDict, total=False):
    """What an output must be. A kind reads the fields that `_KINDS` lists for it."""

    kind: Required[str]  # one of KINDS
    accept: Sequence[str]  # phrases that the output must contain, each as whole words
    reject: Sequence[str]  # phrases that it must not contain
    n: int  # how many: words, lines, parts between commas, or times
    text: str  # how the output must start or end
    word: str  # a phrase that it must contain, or must not
    checks: Sequence["Check"]  # all of which must hold


# Each test is (check, text) -> bool; the text is stripped and has at least one letter or digit.


def _answer(check: Check, text: str) -> bool:
    accepted = all(has_phrase(text, phrase) for phrase in check.get("accept") or ())
    return accepted and not any(has_phrase(text, phrase) for phrase in check.get("reject") or ())


def _upper(check: Check, text: str) -> bool:
    return text.isupper()


def _lower(check: Check, text: str) -> bool:
    return text.islower()


def _words(check: Check, text: str) -> bool:
    return sum(any(map(str.isalnum, word)) for word in text.split()) == check["n"]


def _starts_with(check: Check, text: str) -> bool:
    start, text = check["text"].strip().lower(), text.lower()
    return text.startswith(start) and not _inside_word(text, len(start))


def _ends_with(check: Check, text: str) -> bool:
    end, text = check["text"].rstrip(_ENDING).strip().lower(), text.rstrip(_ENDING).lower()
    return text.endswith(end) and not _inside_word(text, len(text) - len(end))


def _inside_word(text: str, position: int) -> bool:
    return 0 < position < len(text) and text[position - 1].isalnum() and text[position].isalnum()


def _bullets(check: Check, text: str) -> bool:
    return sum(bool(line[2:].strip()) for line in text.splitlines() if line.startswith("- ")) == check["n"]


def _numbered(check: Check, text: str) -> bool:
    numbers = [int(found[1]) for found in map(_NUMBERED_LINE.match, text.splitlines()) if found]
    return numbers == list(range(1, check["n"] + 1))


def _quoted(check: Check, text: str) -> bool:
    closing = _QUOTES.get(text[0])
    return closing is not None and text[-1] == closing and closing not in text[1:-1]


def _without(check: Check, text: str) -> bool:
    return not has_phrase(text, check["word"])


def _contains(check: Check, text: str) -> bool:
    return count_phrase(text, check["word"]) >= (check.get("n") or 1)


def _commas(check: Check, text: str) -> bool:
    parts = text.split(",")
    return len(parts) == check["n"] and all(map(str.strip, parts))


def _is_phrase(value: object) -> bool:
    return isinstance(value, str) and bool(normalize(value))


def _is_phrases(value: object) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_phrase, value))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


_Field = tuple[Callable[[object], bool], str]
_PHRASE: _Field = (_is_phrase, "a string with at least one word")
_PHRASES: _Field = (_is_phrases, "a list of strings with at least one word each")
_COUNT: _Field = (_is_count, "a whole number above 0")
_CHECKS: _Field = (lambda value: isinstance(value, list | tuple) and bool(value), "a list of checks")

# kind -> (test, required fields, optional fields); score() handles the kinds without a test
_KINDS: dict[str, tuple[Callable[[Check, str], bool] | None, dict[str, _Field], dict[str, _Field]]] = {
    "answer": (_answer, {}, {"accept": _PHRASES, "reject": _PHRASES}),
    "upper": (_upper, {}, {}),
    "lower": (_lower, {}, {}),
    "words": (_words, {"n": _COUNT}, {}),
    "starts_with": (_starts_with, {"text": _PHRASE}, {}),
    "ends_with": (_ends_with, {"text": _PHRASE}, {}),
    "bullets": (_bullets, {"n": _COUNT}, {}),
    "numbered": (_numbered, {"n": _COUNT}, {}),
    "quoted": (_quoted, {}, {}),
    "without": (_without, {"word": _PHRASE}, {}),
    "contains": (_contains, {"word": _PHRASE}, {"n": _COUNT}),
    "commas": (_commas, {"n": _COUNT}, {}),
    "f1": (None, {}, {}),
    "all": (None, {"checks": _CHECKS}, {}),
}
KINDS = tuple(_KINDS)


def validate(check: object, *, where: str = "check") -> None:
    """Raise InputError, one line that starts with `where`, unless `check` is a known kind with valid fields."""
    if not isinstance(check, Mapping):
        raise InputError(f"{where}: expected an object such as {{'kind': 'answer', 'accept': [...]}}, got {check!r}")
    kind = check.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{where}: unknown kind {kind!r}, expected one of {', '.join(KINDS)}{hint}")
    _, required, optional = _KINDS[kind]
    for name, (is_valid, expected) in {**required, **optional}.items():
        if check.get(name) is None and name in optional:
            continue
        if not is_valid(check.get(name)):
            raise InputError(f"{where}: kind {kind!r} needs {name!r} to be {expected}, got {check.get(name)!r}")
    if kind == "answer" and not (check.get("accept") or check.get("reject")):
        raise InputError(f"{where}: kind 'answer' needs at least one phrase in 'accept' or 'reject'")
    if kind == "all":
        for number, part in enumerate(check["checks"]):
            validate(part, where=f"{where}, checks[{number}]")


def needs_answer(check: Check) -> bool:
    """Whether a valid `check` compares with the row's reference answer."""
    return check["kind"] == "f1" or check["kind"] == "all" and any(map(needs_answer, check["checks"]))


def score(check: Check, text: str, *, answer: str | None = None) -> float:
    """The score of `text`: 0.0 or 1.0, except for "f1", which compares with the reference `answer` and is in [0, 1].

    "all" holds several checks; its score is the lowest of theirs.
    """
    validate(check)
    if check["kind"] == "all":
        return min(score(part, text, answer=answer) for part in check["checks"])
    if check["kind"] == "f1":
        if answer is None:
            raise InputError("check: kind 'f1' compares with the row's 'answer', and this row has none")
        return token_f1(text, answer)
    text = text.strip()
    test = _KINDS[check["kind"]][0]
    assert test is not None
    return float(any(map(str.isalnum, text)) and test(check, text))
