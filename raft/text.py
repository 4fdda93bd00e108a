"""Words, as the scorers and the diagnostics count them."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

# Scripts written without spaces: every character is a word.
_SPACELESS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# A list, not the class of all that is no letter: vowel signs within the words of Indic scripts are no letters either.
_PUNCTUATION = (
    r"!-/:-@\[-`{-~\u00a1-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u00d7\u00f7"
    r"\u0964\u0965\u2000-\u206f\u3000-\u303f\uff01-\uff20"
)
_LETTER = rf"[^\s\d{_PUNCTUATION}{_SPACELESS}]"
_WORD = re.compile(rf"\d+(?:[.,:/]\d+)*|[{_SPACELESS}]|{_LETTER}(?:['’]?(?:{_LETTER}|\d))*")
_NOT = re.compile(r"n['’]t\b")
_SHORT = {"can't": "can not", "won't": "will not", "shan't": "shall not", "cannot": "can not"}
_SHORTENED = re.compile("|".join(word.replace("'", "['’]") for word in _SHORT))

# English words that hold a sentence together and say no fact. "not", "no", "all" and the like do say one.
_FUNCTION_WORDS = (
    "a an the this that these those it its he she they them his her hers their theirs him i me my mine we us our ours "
    "you your yours is are was were be been being am do does did done doing has have had having will would shall "
    "should can could may might must of in on at to from by with for about as into onto over under between through "
    "during per via than then so such there here and or but if because while although though also too very just who "
    "whom whose which what when where why how itself himself herself themselves yourself ourselves myself"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


def words(text: str) -> list[str]:
    """Lower-case words and numbers in their order, "isn't" as two of them; punctuation and symbols are left out."""
    text = unicodedata.normalize("NFC", text).lower()
    text = _SHORTENED.sub(lambda match: _SHORT[match[0].replace("’", "'")], text)
    return [word.replace(",", "") if word[0].isdigit() else word for word in _WORD.findall(_NOT.sub(" not", text))]


def content_words(text: str) -> set[str]:
    """Stems of the words that carry facts; of all words where there are no others ("That is it.")."""
    found = words(text)
    facts = {stem(word) for word in found if word not in FUNCTION_WORDS}
    return facts or {stem(word) for word in found}


def stem(word: str) -> str:
    """One form for "move", "moves", "moved" and "moving". It need not be a word, only the same in both texts that are
    compared."""
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
    if word.endswith("i"):  # cities and carried, as city and carry
        word = word[:-1] + "y"
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


def ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def distinct(tokens: Sequence[str]) -> float:
    """Share of distinct trigrams, in [0, 1], of shorter n-grams where there are fewer tokens; 1 where there are none.
    It is low where a text loops."""
    grams = ngrams(tokens, min(3, len(tokens)))
    return len(grams) / grams.total() if tokens else 1.0


def ngram_f1(a: str, b: str, n: int) -> float | None:
    """F1 of the n-grams of two texts as multisets, in [0, 1]; None where neither has any."""
    left, right = ngrams(words(a), n), ngrams(words(b), n)
    total = left.total() + right.total()
    return 2 * (left & right).total() / total if total else None
