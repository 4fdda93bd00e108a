"""Words, stems and n-grams of texts, for scores and diagnostics."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

# Scripts written without spaces: each character counts as a word.
SPACELESS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# An explicit list, since "no letter" would include the vowel signs within words of Indic scripts.
_PUNCTUATION = (
    r"!-/:-@\[-`{-~\u00a1-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u00d7\u00f7"
    r"\u0964\u0965\u2000-\u206f\u3000-\u303f\uff01-\uff20"
)
_LETTER = rf"[^\s\d{_PUNCTUATION}{SPACELESS}]"
_WORD = re.compile(rf"\d+(?:[.,:/]\d+)*|[{SPACELESS}]|{_LETTER}(?:['’]?(?:{_LETTER}|\d))*")
_NOT = re.compile(r"n['’]t\b")
_SHORT = {"can't": "can not", "won't": "will not", "shan't": "shall not", "cannot": "can not"}
_SHORTENED = re.compile("|".join(word.replace("'", "['’]") for word in _SHORT))

# English words that carry no facts. "not", "no", "all" and the like do, so they are not listed.
_FUNCTION_WORDS = (
    "a an the this that these those it its he she they them his her hers their theirs him i me my mine we us our ours "
    "you your yours is are was were be been being am do does did done doing has have had having will would shall "
    "should can could may might must of in on at to from by with for about as into onto over under between through "
    "during per via than then so such there here and or but if because while although though also too very just who "
    "whom whose which what when where why how itself himself herself themselves yourself ourselves myself"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


def words(text: str) -> list[str]:
    """Lower-case words and numbers in order, without punctuation and symbols; "isn't" gives "is" and "not"."""
    text = unicodedata.normalize("NFC", text).lower()
    text = _SHORTENED.sub(lambda match: _SHORT[match[0].replace("’", "'")], text)
    return [word.replace(",", "") if word[0].isdigit() else word for word in _WORD.findall(_NOT.sub(" not", text))]


def content_words(text: str) -> set[str]:
    """Stems of the words that carry facts, or of all words if none does, as in "That is it."."""
    found = words(text)
    facts = {stem(word) for word in found if word not in FUNCTION_WORDS}
    return facts or {stem(word) for word in found}


def stem(word: str) -> str:
    """The same form for "move", "moves", "moved" and "moving"; not always a word."""
    word = re.sub(r"['’]s?$", "", word)
    if len(word) < 4 or not (word.isascii() and word.isalpha()):
        return word
    if word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    for ending in ("ing", "ed"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    word = word.rstrip("e")
    if word.endswith("i"):  # from "cities" and "carried": "city" and "carry"
        word = word[:-1] + "y"
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


def ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def distinct(tokens: Sequence[str]) -> float:
    """Share of distinct trigrams, in [0, 1]; low for a text that repeats itself. Texts of fewer than three tokens are
    one n-gram; an empty text gives 1."""
    grams = ngrams(tokens, min(3, len(tokens)))
    return len(grams) / grams.total() if tokens else 1.0


def ngram_f1(a: str, b: str, n: int) -> float | None:
    """F1 of the n-grams of two texts as multisets, in [0, 1]; None if neither text has any."""
    left, right = ngrams(words(a), n), ngrams(words(b), n)
    total = left.total() + right.total()
    return 2 * (left & right).total() / total if total else None
