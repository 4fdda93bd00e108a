"""Facts that a program can find in an English text: numbers with their units, dates, names, what is negated or hedged.

They are compared, never understood: a fact counts as kept if the other text has the same one in any of the forms known
here ("1,000 mg" and "1000 milligrams"). Where a form is not known the two texts differ, and the caller keeps the
reference.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from raft.text import FUNCTION_WORDS, stem, words


class Number(NamedTuple):
    value: str  # decimal digits without separators and trailing zeros, a month's name, or a code such as "21q22"
    unit: str  # of UNITS; empty where there is none


_UNIT_FORMS = {
    "percent": "% percent per-cent",
    "g": "g gram grams",
    "mg": "mg milligram milligrams",
    "kg": "kg kilogram kilograms kilo kilos",
    "mcg": "mcg µg μg microgram micrograms",
    "lb": "lb lbs pound pounds",
    "l": "l liter liters litre litres",
    "ml": "ml milliliter milliliters millilitre millilitres",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres",
    "inch": "inch inches",
    "foot": "ft foot feet",
    "gallon": "gal gallon gallons",
    "ounce": "oz ounce ounces",
    "mile": "mile miles",
    "second": "s sec second seconds",
    "minute": "min minute minutes",
    "hour": "h hr hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "yr year years",
    "degree": "° degree degrees",
    "dollar": "dollar dollars",
    "time": "time times",
}
UNITS = {form: unit for unit, forms in _UNIT_FORMS.items() for form in forms.split()}
# "one" and "a" are pronouns and articles more often than numbers.
_TO_TWENTY = """two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty"""
_TENS = "thirty forty fifty sixty seventy eighty ninety"
_NUMBER_WORDS = {
    "zero": 0,
    **{word: value for value, word in enumerate(re.findall(r"\w+", _TO_TWENTY), 2)},
    **{word: 10 * value for value, word in enumerate(re.findall(r"\w+", _TENS), 3)},
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
}
_MONTHS = re.findall(r"\w+", "January February March April May June July August September October November December")
_ITEM = re.compile(r"^\s*(?:\d{1,2}|[a-z])[.)]\s+", re.MULTILINE)  # the number of a list's item is no fact
_AMOUNT = re.compile(r"(?<![\w.,])(?<![A-Za-z]-)\$?(\d+(?:,\d{3})*(?:\.\d+)?)(?![\d])[ -]?(%|°|[A-Za-zµμ]+)?")
_CODE = re.compile(r"\b(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[A-Za-z0-9]+(?:[-.][A-Za-z0-9]+)*\b")
_WORD_AMOUNT = re.compile(rf"\b({'|'.join(_NUMBER_WORDS)})\b(?=(?:[ -]([a-z]+))?)", re.IGNORECASE)
# At the start of a sentence "May", "March" and "August" may be other words.
_MONTH = re.compile(
    rf"\b({'|'.join(set(_MONTHS) - {'May', 'March', 'August'})})\b|(?<=[\w,;)–—-] )(May|March|August)\b"
)
_NEGATIONS = frozenset(("not", "no", "never", "without", "neither", "nor", "none", "nobody", "nothing"))
_HEDGES = frozenset(
    re.findall(
        r"\w+",
        """may might could possible possibly perhaps maybe probable probably likely unlikely usual usually often
        sometimes occasionally rarely seldom generally typical typically commonly mostly frequently normally most some
        many few approximately estimated almost nearly appears appear seems seem""",
    )
)
_CLAUSE_END = re.compile(r"(?<=[.!?;,:])\s+|\n+|\bbut\b")
# In the middle of a sentence: not behind the end of another, a colon, a quotation mark or a bullet.
_NAME = re.compile(r"(?<=[\w,;)–—-] )([A-Z][\w’'-]*[A-Za-z0-9])|(?<=\()([A-Z][\w’'-]*[A-Z0-9])\b")
_REACH = 3  # content words that a negation or hedge may be about


def numbers(text: str) -> list[Number]:
    """Numbers in digits and words, each with its unit, months of dates, and codes of letters and digits ("B12"), in the
    order of the text."""
    text = _ITEM.sub("", text)
    found: dict[int, Number] = {}
    for match in _CODE.finditer(text):
        amount = _AMOUNT.fullmatch(match[0])
        with_unit = amount is not None and (amount[2] or "").lower() in UNITS
        if not with_unit and not re.fullmatch(r"\d+(?:-[A-Za-z]+)+", match[0]):  # "20-year-old" is an amount
            found[match.start()] = Number(match[0].lower(), "")
    for match in _AMOUNT.finditer(text):
        unit = UNITS.get((match[2] or "").lower(), "")
        if match[2] and not unit and text[match.end(1)].isalpha():
            continue  # a code
        found[match.start(1)] = Number(_plain(match[1]), unit)
    for match in _WORD_AMOUNT.finditer(text):
        unit = UNITS.get((match[2] or "").lower(), "")
        found[match.start()] = Number(str(_NUMBER_WORDS[match[1].lower()]), unit)
    for match in _MONTH.finditer(text):
        found[match.start()] = Number(match[0].lower(), "")
    return [found[place] for place in sorted(found)]


def amount_words(text: str) -> set[str]:
    """The words of a text that say an amount, as `raft.text.content_words` gives them."""
    return {stem(word) for word in words(text) if word[0].isdigit() or word in _NUMBER_WORDS or word in UNITS}


def _plain(digits: str) -> str:
    digits = digits.replace(",", "")
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def missing_numbers(wanted: Iterable[Number], given: Iterable[Number]) -> set[Number]:
    """Those of `wanted` that `given` has not: of the same value, and of the same unit where both have one."""
    there = set(given)
    return {
        number
        for number in wanted
        if not any(
            number.value == other.value and (number.unit == other.unit or not (number.unit and other.unit))
            for other in there
        )
    }


def in_order(given: Iterable[Number], wanted: Iterable[Number]) -> bool:
    """Whether those values of `given` that `wanted` has too come in the order that they have in `wanted`. A number that
    was moved beside another's words ("22 percent are younger than 60" out of a list) is mostly out of order."""
    values = [number.value for number in wanted]
    rest = iter(values)
    return all(number.value in rest for number in given if number.value in values)


def negations(text: str) -> list[frozenset[str]]:
    """For each negation the stems of the next content words of its clause, of those before where none follow."""
    return _near(text, _NEGATIONS)


def hedges(text: str) -> list[frozenset[str]]:
    """The same for each word that says that something is not always or not surely so."""
    return _near(_MONTH.sub("", text), _HEDGES)  # "in May" is no hedge


def _near(text: str, marks: frozenset[str]) -> list[frozenset[str]]:
    near = []
    for clause in _CLAUSE_END.split(text):
        found = words(clause)
        content = [(i, stem(word)) for i, word in enumerate(found) if word not in FUNCTION_WORDS and word not in marks]
        for place in (i for i, word in enumerate(found) if word in marks):
            after = [word for i, word in content if i > place][:_REACH]
            before = [word for i, word in content if i < place][-_REACH:]
            near.append(frozenset(after or before))
    return near


def unmatched(wanted: list[frozenset[str]], given: list[frozenset[str]]) -> int:
    """How many negations, or hedges, of `wanted` have none in `given` that is about one of the same words."""
    return sum(not any(a & b or not (a and b) for b in given) for a in wanted)


def asserted(reference: str, denied: list[frozenset[str]], text: str, denies: list[frozenset[str]]) -> set[str]:
    """Words that the reference only denies and the text only says ("you can't smell it, but you can taste it").

    denied, denies: the negations of the reference and of the text.
    """
    says = Counter(stem(word) for word in words(reference))
    often = Counter(word for each in denied for word in each)
    only_denied = {word for word, times in often.items() if says[word] <= times}
    return (only_denied & {stem(word) for word in words(text)}) - frozenset().union(*denies)


def names(text: str) -> set[str]:
    """Words that are written with a capital in the middle of a sentence, in lower case and without "'s"."""
    found = (match[1] or match[2] for match in _NAME.finditer(_ITEM.sub("", text)))
    return {re.sub(r"['’]s?$", "", name).lower() for name in found}
