"""The format suite: instructions that a program can check (the micro-world's counterpart of IFEval)."""

import random
from collections.abc import Callable

from raft.demo import words
from raft.demo.skills import Exercise
from raft.evaluate.checks import Check

_COUNTS = ("zero", "one", "two", "three", "four", "five", "six")
_ENDINGS = ("that is all", "thank you", "the end", "good day")


def _items(rng: random.Random, low: int = 2, high: int = 5) -> tuple[str, list[str], str]:
    """A request for some things of a category, the things, and the category."""
    kind = rng.choice(sorted(words.CATEGORIES))
    some = rng.sample(words.CATEGORIES[kind], rng.randint(low, high))
    return f"Name {_COUNTS[len(some)]} {words.ASKED[kind]}", some, kind


def upper(rng: random.Random) -> Exercise:
    if rng.random() < 0.4:
        a, b = rng.choice(words.OPPOSITES)
        return Exercise(f"What is the opposite of {a}? Answer in capital letters.", b.upper(), {"kind": "upper"})
    ask, some, _ = _items(rng)
    return Exercise(f"{ask} in capital letters.", " ".join(some).upper(), {"kind": "upper"})


def exactly_n_words(rng: random.Random) -> Exercise:
    _, some, kind = _items(rng)
    return Exercise(
        f"Write about {kind} in exactly {_COUNTS[len(some)]} words.", " ".join(some), {"kind": "words", "n": len(some)}
    )


def start_with(rng: random.Random) -> Exercise:
    ask, some, kind = _items(rng)
    first = rng.choice([word for word in words.THINGS if word not in words.CATEGORIES[kind]])
    return Exercise(
        f"{ask}. Start with the word {first}.", f"{first} {' '.join(some)}", {"kind": "starts_with", "text": first}
    )


def end_with(rng: random.Random) -> Exercise:
    ask, some, _ = _items(rng)
    last = rng.choice(_ENDINGS)
    return Exercise(f"{ask}. End with: {last}.", f"{' '.join(some)} {last}", {"kind": "ends_with", "text": last})


def bullet_list(rng: random.Random) -> Exercise:
    ask, some, _ = _items(rng)
    return Exercise(
        f"{ask} as a bullet list.", "\n".join(f"- {word}" for word in some), {"kind": "bullets", "n": len(some)}
    )


def numbered_list(rng: random.Random) -> Exercise:
    ask, some, _ = _items(rng)
    lines = "\n".join(f"{i}. {word}" for i, word in enumerate(some, 1))
    return Exercise(f"{ask} as a numbered list.", lines, {"kind": "numbered", "n": len(some)})


def quoted(rng: random.Random) -> Exercise:
    ask, some, _ = _items(rng)
    return Exercise(f"{ask} inside quotes.", f"“{' '.join(some)}”", {"kind": "quoted"})


def with_commas(rng: random.Random) -> Exercise:
    ask, some, _ = _items(rng)
    return Exercise(f"{ask} with commas between them.", ", ".join(some), {"kind": "commas", "n": len(some)})


def without_word(rng: random.Random) -> Exercise:
    ask, some, kind = _items(rng, 3, 5)
    banned = rng.choice([word for word in words.CATEGORIES[kind] if word not in some])
    # The words are counted too; otherwise any text without the banned word would pass.
    check: Check = {"kind": "all", "checks": [{"kind": "without", "word": banned}, {"kind": "words", "n": len(some)}]}
    return Exercise(f"{ask} without the word {banned}.", " ".join(some), check)


def use_twice(rng: random.Random) -> Exercise:
    ask, some, kind = _items(rng)
    word = rng.choice([word for word in words.THINGS if word not in words.CATEGORIES[kind]])
    return Exercise(
        f"{ask} and use the word {word} twice.",
        f"{word} {' '.join(some)} {word}",
        {"kind": "contains", "word": word, "n": 2},
    )


FORMATS: dict[str, Callable[[random.Random], Exercise]] = {
    form.__name__: form
    for form in (
        upper,
        exactly_n_words,
        start_with,
        end_with,
        bullet_list,
        numbered_list,
        quoted,
        with_commas,
        without_word,
        use_twice,
    )
}
