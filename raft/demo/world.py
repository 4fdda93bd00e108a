"""The training rows and the validation and test items of one micro-world domain, drawn from a seed."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TypedDict

from raft.demo import known, words
from raft.demo.domains import (
    DOMAINS,
    PAIR_PHRASINGS,
    PHRASINGS,
    Fact,
    answer_check,
    draw_entity,
    foreign_answer,
    own_answer,
    pair_question,
    question,
)
from raft.demo.formats import FORMATS
from raft.demo.skills import SKILLS, Exercise
from raft.errors import ConfigError
from raft.evaluate.suites import Item

ENTITIES = 20  # per domain; 5 facts per entity and 3 training rows per fact make 300 training rows
NOTE_SHARE = 0.3  # share of the reference answers with a side remark
PER_SKILL = {"validation": 6, "test": 20}
PER_FORMAT = {"validation": 5, "test": 15}


class TrainingRow(TypedDict):
    id: str
    question: str
    answer: str  # the reference, in the domain's style


@dataclass(frozen=True)
class World:
    """Rows and items in the form that raft.rows and raft.evaluate read."""

    train: list[TrainingRow]
    validation: list[Item]
    test: list[Item]

    def part(self, train_rows: int | None, every_item: int) -> "World":
        """The first `train_rows` training rows and every `every_item`-th item of both splits."""
        return World(self.train[:train_rows], self.validation[::every_item], self.test[::every_item])


def draw_world(domain_name: str, seed: int) -> World:
    """Draw the world of one domain. The same arguments give the same world on every machine.

    Each fact has six phrasings: three for training, one for validation and two for the test, so no question occurs
    word for word in two splits. Questions about two facts at once occur in validation and test only.
    """
    if domain_name not in DOMAINS:
        raise ConfigError(f"domain: expected one of {', '.join(DOMAINS)}, found {domain_name!r}")
    domain = DOMAINS[domain_name]
    rng = random.Random(f"world {domain_name} {seed}")
    train: list[TrainingRow] = []
    splits: dict[str, list[Item]] = {"validation": [], "test": []}

    def add(split: str, skill: str, asked: str, facts: list[Fact]) -> None:
        example = Exercise(asked, own_answer(*facts), answer_check(facts))
        splits[split].append(_item("domain", skill, len(splits[split]), example))

    for name in rng.sample(known.free_names(), ENTITIES):
        facts = draw_entity(domain, name, rng)
        for fact in facts:
            phrasings = rng.sample(range(len(PHRASINGS)), len(PHRASINGS))
            for phrasing in phrasings[:3]:
                note = rng.choice(words.MONTHS) if rng.random() < NOTE_SHARE else None
                answer = foreign_answer(domain, fact, rng.randrange(len(domain.foreign)), note)
                train.append(
                    {"id": f"{domain_name}-{len(train):03d}", "question": question(fact, phrasing), "answer": answer}
                )
            add("validation", "paraphrase", question(fact, phrasings[3]), [fact])
            for phrasing in phrasings[4:]:
                add("test", "paraphrase", question(fact, phrasing), [fact])
        pairs = rng.sample(list(combinations(facts, 2)), 3)
        for split, (one, other) in zip(("validation", "test", "test"), pairs, strict=True):
            add(split, "two facts", pair_question(one, other, rng.randrange(len(PAIR_PHRASINGS))), [one, other])

    for split, items in splits.items():
        items += _draw_items("general", SKILLS, PER_SKILL[split], random.Random(f"general {split} {seed}"))
        items += _draw_items("format", FORMATS, PER_FORMAT[split], random.Random(f"format {split} {seed}"))
    rng.shuffle(train)
    return World(train, splits["validation"], splits["test"])


def _draw_items(
    suite: str, draws: Mapping[str, Callable[[random.Random], Exercise]], n: int, rng: random.Random
) -> list[Item]:
    return [_item(suite, skill, i, draw(rng)) for skill, draw in draws.items() for i in range(n)]


def _item(suite: str, skill: str, number: int, example: Exercise) -> Item:
    return {
        "id": f"{suite}-{skill.replace(' ', '_')}-{number:03d}",
        "suite": suite,
        "skill": skill,
        "question": example.question,
        "answer": example.answer,
        "check": example.check,
    }
