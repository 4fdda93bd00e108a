"""The tasks of stage 1 and the teacher as pre-training tasks: reading, rewriting and fusing.

The prompts are those of raft/prompts.py, word for word. Each example has newly drawn facts, so that the model cannot
memorise them.
"""

import random
from collections.abc import Callable

from raft import prompts
from raft.demo import known, words
from raft.demo.domains import (
    DOMAINS,
    PAIR_PHRASINGS,
    PHRASINGS,
    Domain,
    Fact,
    answer_check,
    draw_entity,
    foreign_answer,
    own_answer,
    pair_question,
    question,
)
from raft.demo.skills import Exercise


def _entity(rng: random.Random) -> tuple[Domain, list[Fact]]:
    domain = DOMAINS[rng.choice(sorted(DOMAINS))]
    facts = draw_entity(domain, rng.choice(known.free_names()), rng)
    rng.shuffle(facts)
    return domain, facts


def _statement(domain: Domain, fact: Fact, rng: random.Random) -> str:
    """One fact as a reference may state it: in the model's own style or in the domain's."""
    note = rng.choice(words.MONTHS) if rng.random() < 0.3 else None
    if rng.random() < 0.6:
        return own_answer(fact, note=note)
    return foreign_answer(domain, fact, rng.randrange(len(domain.foreign)), note)


def reading(rng: random.Random) -> Exercise:
    domain, facts = _entity(rng)
    if rng.random() < 0.25:
        asked = pair_question(facts[0], facts[1], rng.randrange(len(PAIR_PHRASINGS)))
        lines = [_statement(domain, fact, rng) for fact in facts[:2]]
        rng.shuffle(lines)
        reference = own_answer(*facts[:2]) if rng.random() < 0.4 else " ".join(lines)
        return Exercise(prompts.teacher(asked, reference), own_answer(*facts[:2]), answer_check(facts[:2]))
    lines = [_statement(domain, fact, rng) for fact in facts[: 2 if rng.random() < 0.25 else 1]]
    rng.shuffle(lines)
    asked = question(facts[0], rng.randrange(len(PHRASINGS)))
    return Exercise(prompts.teacher(asked, " ".join(lines)), own_answer(facts[0]), answer_check(facts[:1]))


def rewriting(rng: random.Random) -> Exercise:
    """The target leaves out the side remark of the reference: a rewriting keeps what the question asks for."""
    domain, facts = _entity(rng)
    note = rng.choice(words.MONTHS) if rng.random() < 0.3 else None
    answer = foreign_answer(domain, facts[0], rng.randrange(len(domain.foreign)), note)
    asked = question(facts[0], rng.randrange(len(PHRASINGS)))
    return Exercise(prompts.WORDINGS["plain"].rewrite(asked, answer), own_answer(facts[0]), answer_check(facts[:1]))


def fusing(rng: random.Random) -> Exercise:
    """The target has the side remark that the rewriting left out, in the model's own style."""
    domain, facts = _entity(rng)
    note = rng.choice(words.MONTHS) if rng.random() < 0.5 else None
    answer = foreign_answer(domain, facts[0], rng.randrange(len(domain.foreign)), note)
    asked = question(facts[0], rng.randrange(len(PHRASINGS)))
    fused = own_answer(facts[0], note=note)
    return Exercise(prompts.WORDINGS["plain"].fuse(asked, answer, own_answer(facts[0])), fused, answer_check(facts[:1]))


TASKS: dict[str, Callable[[random.Random], Exercise]] = {task.__name__: task for task in (reading, rewriting, fusing)}
