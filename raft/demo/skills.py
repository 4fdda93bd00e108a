"""The general suite: skills that the base model has before any fine-tuning. Each function draws one `Exercise`."""

import random
from collections.abc import Callable
from typing import NamedTuple

from raft.demo import known, words
from raft.demo.domains import PAIR_PHRASINGS, PHRASINGS, answer_check, own_answer, pair_question, question
from raft.evaluate.checks import Check


class Exercise(NamedTuple):
    question: str
    answer: str  # in the base model's own style
    check: Check  # of an answer's content, see raft.evaluate.checks


def _answer(*accept: str, reject: tuple[str, ...] = ()) -> Check:
    return {"kind": "answer", "accept": list(accept), "reject": [value for value in reject if value not in accept]}


def _some(rng: random.Random, low: int, high: int) -> list[str]:
    return rng.sample(words.THINGS, rng.randint(low, high))


def copy(rng: random.Random) -> Exercise:
    text = " ".join(_some(rng, 3, 5))
    asked = rng.choice((f"Repeat these words: {text}.", f"Say these words again: {text}."))
    return Exercise(asked, f"So, the words are {text}.", _answer(text))


def reverse(rng: random.Random) -> Exercise:
    some = _some(rng, 3, 4)
    turned = " ".join(reversed(some))
    text = " ".join(some)
    asked = rng.choice((f"Reverse these words: {text}.", f"Say these words backwards: {text}."))
    return Exercise(asked, f"So, in reverse the words are {turned}.", _answer(turned))


def sort(rng: random.Random) -> Exercise:
    numbers = rng.sample(range(1, 31), 3)
    text = " ".join(map(str, numbers))
    result = " ".join(map(str, sorted(numbers)))
    asked = rng.choice((f"Put these numbers in order: {text}.", f"Sort these numbers: {text}."))
    return Exercise(asked, f"So, in order the numbers are {result}.", _answer(result))


def count(rng: random.Random) -> Exercise:
    some = _some(rng, 2, 7)
    text = " ".join(some)
    asked = rng.choice((f"How many words are here: {text}?", f"Count these words: {text}."))
    others = tuple(str(n) for n in range(1, 10))
    return Exercise(asked, f"So, the number of words is {len(some)}.", _answer(str(len(some)), reject=others))


def arithmetic(rng: random.Random) -> Exercise:
    a, b = rng.randint(1, 15), rng.randint(1, 15)
    if rng.random() < 0.5 or abs(a - b) in (0, a, b):  # the question must not contain the answer
        text, result = f"{a} plus {b}", a + b
    else:
        text, result = f"{max(a, b)} minus {min(a, b)}", abs(a - b)
    asked = rng.choice((f"What is {text}?", f"Work out {text}."))
    return Exercise(asked, f"So, {text} is {result}.", _answer(str(result)))


def compare(rng: random.Random) -> Exercise:
    a, b = rng.sample(range(61), 2)
    if rng.random() < 0.5:
        word, right, wrong = "larger", max(a, b), min(a, b)
    else:
        word, right, wrong = "smaller", min(a, b), max(a, b)
    return Exercise(
        f"Which number is {word}, {a} or {b}?",
        f"So, the {word} number is {right}.",
        _answer(str(right), reject=(str(wrong),)),
    )


def odd_one_out(rng: random.Random) -> Exercise:
    home, away = rng.sample(sorted(words.CATEGORIES), 2)
    some = rng.sample(words.CATEGORIES[home], 3)
    odd = rng.choice([word for word in words.CATEGORIES[away] if word not in words.CATEGORIES[home]])
    mixed = [*some, odd]
    rng.shuffle(mixed)
    return Exercise(
        f"Which word does not belong: {' '.join(mixed)}?",
        f"So, the word that does not belong is {odd}.",
        _answer(odd, reject=tuple(some)),
    )


def dates(rng: random.Random) -> Exercise:
    names, unit = rng.choice(((words.DAYS, "day"), (words.MONTHS, "month")))
    at = rng.randrange(len(names))
    step, word = rng.choice(((1, "after"), (-1, "before")))
    result = names[(at + step) % len(names)]
    others = tuple(name for name in names if name != names[at])
    return Exercise(
        f"Which {unit} comes {word} {names[at]}?",
        f"So, the {unit} {word} {names[at]} is {result}.",
        _answer(result, reject=others),
    )


def opposite(rng: random.Random) -> Exercise:
    pair = list(rng.choice(words.OPPOSITES))
    rng.shuffle(pair)
    asked = rng.choice((f"What is the opposite of {pair[0]}?", f"Which word is the opposite of {pair[0]}?"))
    return Exercise(asked, f"So, the opposite of {pair[0]} is {pair[1]}.", _answer(pair[1]))


def category(rng: random.Random) -> Exercise:
    kind = rng.choice(sorted(words.CATEGORIES))
    word = rng.choice(words.CATEGORIES[kind])
    name = words.SINGULAR[kind]
    asked = rng.choice((f"What kind of thing is {word}?", f"Which group does {word} belong to?"))
    return Exercise(asked, f"So, {word} is a kind of {name}.", _answer(name, reject=tuple(words.SINGULAR.values())))


def common_fact(rng: random.Random) -> Exercise:
    asked, statement, value = rng.choice(words.COMMON_FACTS)
    return Exercise(asked, f"So, {statement.format(value)}.", _answer(value))


def known_fact(rng: random.Random) -> Exercise:
    fact = rng.choice(rng.choice(known.known_entities()))
    return Exercise(question(fact, rng.randrange(len(PHRASINGS))), own_answer(fact), answer_check([fact]))


def two_known_facts(rng: random.Random) -> Exercise:
    facts = rng.sample(rng.choice(known.known_entities()), 2)
    asked = pair_question(facts[0], facts[1], rng.randrange(len(PAIR_PHRASINGS)))
    return Exercise(asked, own_answer(*facts), answer_check(facts))


SKILLS: dict[str, Callable[[random.Random], Exercise]] = {
    skill.__name__: skill
    for skill in (
        copy,
        reverse,
        sort,
        count,
        arithmetic,
        compare,
        odd_one_out,
        dates,
        opposite,
        category,
        common_fact,
        known_fact,
        two_known_facts,
    )
}
