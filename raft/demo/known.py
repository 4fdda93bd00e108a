"""The facts that the base model knows: about entities of all five domains, the same for every seed.

They teach the model what can be asked and how, so that only the facts are new in fine-tuning. As part of the general
suite they measure forgetting. Their names never occur in a domain that is to be learned.
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
    """Names for the entities of the domains that are to be learned."""
    return tuple(name for name in words.NAMES if name not in known_names())


@cache
def known_entities() -> tuple[tuple[Fact, ...], ...]:
    """The facts of each known entity: ENTITIES_PER_DOMAIN entities per domain with 5 facts each."""
    rng = random.Random("known facts")
    names = iter(known_names())
    return tuple(
        tuple(draw_entity(domain, next(names), rng)) for domain in DOMAINS.values() for _ in range(ENTITIES_PER_DOMAIN)
    )
