"""What the base model knows of the five kinds of entities: facts about entities of its own, fixed for good.

They teach it what can be asked and how, so that fine-tuning has only new facts to teach; and they are part of the general
suite, so that forgetting them shows. Their names never occur in a domain that is to be learned.
"""

import random
from functools import cache

from raft.demo import words
from raft.demo.domains import DOMAINS, Fact, draw_entity

ENTITIES_PER_DOMAIN = 10


@cache
def known_names() -> tuple[str, ...]:
    names = list(words.NAMES)
    random.Random("known names").shuffle(names)
    return tuple(names[: ENTITIES_PER_DOMAIN * len(DOMAINS)])


@cache
def free_names() -> tuple[str, ...]:
    """Names that the domains to be learned may use."""
    return tuple(name for name in words.NAMES if name not in known_names())


@cache
def known_entities() -> tuple[tuple[Fact, ...], ...]:
    """The facts of each known entity, [ENTITIES_PER_DOMAIN * 5] entities with 5 facts each."""
    rng = random.Random("known facts")
    names = iter(known_names())
    return tuple(
        tuple(draw_entity(domain, next(names), rng)) for domain in DOMAINS.values() for _ in range(ENTITIES_PER_DOMAIN)
    )
