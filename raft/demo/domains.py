"""The five domains: their entities, the questions about an entity, and the style of the reference answers.

A fact is (entity, relation, value); `PHRASINGS` are the ways to ask for it. The base model answers in one fixed style
(`own_answer`). The domain's reference answers have another one (`foreign_answer`): telegraphic, value first, other
punctuation.
"""

import random
from dataclasses import dataclass

from raft.demo import words
from raft.evaluate.checks import Check

PEOPLE = tuple(f"{first} {last}" for first in words.FIRST_NAMES for last in words.LAST_NAMES)


@dataclass(frozen=True)
class Relation:
    role: str  # what the value is to the entity, such as "founder"
    ask: str  # a direct question; {e} is the entity
    clause: str  # the same as an indirect question
    values: tuple[str, ...]


@dataclass(frozen=True)
class Domain:
    name: str
    entities: tuple[str, ...]  # patterns of an entity's name; {n} is one of words.NAMES
    relations: tuple[Relation, ...]
    foreign: tuple[str, ...]  # patterns of a reference answer: {v} value, {r} role, {e} entity
    note: str  # pattern of its side remark; {m} is a month


@dataclass(frozen=True)
class Fact:
    entity: str
    relation: Relation
    value: str


DOMAINS: dict[str, Domain] = {
    domain.name: domain
    for domain in (
        Domain(
            "business_industry",
            ("{n} Foods", "{n} Motors", "{n} Bank", "{n} Tools", "{n} Textiles"),
            (
                Relation("founder", "Who founded {e}?", "who founded {e}", PEOPLE),
                Relation("home city", "Which city is {e} based in?", "which city {e} is based in", words.CITIES),
                Relation("main product", "What does {e} sell?", "what {e} sells", words.GOODS),
                Relation("founding year", "When was {e} founded?", "when {e} was founded", words.YEARS),
                Relation("logo color", "What color is the logo of {e}?", "what color the logo of {e} is", words.COLORS),
            ),
            ("{v} // {r} // {e}", "{v} = {r} ; {e}", "{v} | {r} re {e} | end"),
            "[ audit {m} ]",
        ),
        Domain(
            "law_government",
            ("the {n} Act", "the {n} Rule", "the {n} Treaty", "the {n} Charter"),
            (
                Relation("author", "Who wrote {e}?", "who wrote {e}", PEOPLE),
                Relation("subject", "What does {e} cover?", "what {e} covers", words.TOPICS),
                Relation("penalty", "What does breaking {e} lead to?", "what breaking {e} leads to", words.PENALTIES),
                Relation("passing year", "When was {e} passed?", "when {e} was passed", words.YEARS),
                Relation("office", "Which office enforces {e}?", "which office enforces {e}", words.OFFICES),
            ),
            ("§ {v} § {r} § {e}", "{v} & item {r} & {e}", "{v} ; as {r} ; {e}"),
            "( amended {m} )",
        ),
        Domain(
            "open_culture",
            ("the {n} Song", "the {n} Painting", "the {n} Festival", "the {n} Poem", "the {n} Dance"),
            (
                Relation("maker", "Who made {e}?", "who made {e}", PEOPLE),
                Relation("home city", "Which city keeps {e}?", "which city keeps {e}", words.CITIES),
                Relation("theme", "What is {e} about?", "what {e} is about", words.TOPICS),
                Relation("first year", "When was {e} first shown?", "when {e} was first shown", words.YEARS),
                Relation("material", "What is {e} made with?", "what {e} is made with", words.MATERIALS),
            ),
            ("* {v} * {r} * {e}", "{v} ~ {r} ~ {e}", "{v} ( {r} ) -- {e}"),
            "* shown {m} *",
        ),
        Domain(
            "open_science",
            ("the {n} Beetle", "the {n} Star", "the {n} Mineral", "the {n} Fish", "the {n} Fungus"),
            (
                Relation("discoverer", "Who discovered {e}?", "who discovered {e}", PEOPLE),
                Relation("region", "Where is {e} found?", "where {e} is found", words.PLACES),
                Relation("use", "What is {e} used for?", "what {e} is used for", words.USES),
                Relation("discovery year", "When was {e} discovered?", "when {e} was discovered", words.YEARS),
                Relation("color", "What color is {e}?", "what color {e} is", words.COLORS),
            ),
            ("{v} <- {r} <- {e}", "{v} ^ {r} ^ {e}", "obs {v} / {r} / {e}"),
            "[ log {m} ]",
        ),
        Domain(
            "open_web",
            ("the {n} Blog", "the {n} Forum", "the {n} Channel", "the {n} Wiki"),
            (
                Relation("owner", "Who owns {e}?", "who owns {e}", PEOPLE),
                Relation("topic", "What does {e} discuss?", "what {e} discusses", words.TOPICS),
                Relation("language", "Which language does {e} use?", "which language {e} uses", words.LANGUAGES),
                Relation("starting year", "When did {e} start?", "when {e} started", words.YEARS),
                Relation("host city", "Which city hosts {e}?", "which city hosts {e}", words.CITIES),
            ),
            ("# {v} # {r} # {e}", "{v} >> {r} >> {e}", "{v} + {r} + {e}"),
            "< edited {m} >",
        ),
    )
}

PHRASINGS = (
    "{ask}",
    "{wh} is the {r} of {e}?",
    "Name the {r} of {e}.",
    "Tell me {clause}.",
    "Please give the {r} of {e}.",
    "Do you know {clause}?",
)
PAIR_PHRASINGS = (
    "What are the {r1} and the {r2} of {e}?",
    "Name the {r1} and the {r2} of {e}.",
    "Tell me {clause1} and {clause2}.",
)


def question(fact: Fact, phrasing: int) -> str:
    relation = fact.relation
    wh = "Who" if relation.values is PEOPLE else "What"
    parts = {"ask": relation.ask, "clause": relation.clause, "wh": wh, "r": relation.role, "e": "{e}"}
    return PHRASINGS[phrasing].format(**parts).format(e=fact.entity)


def pair_question(first: Fact, second: Fact, phrasing: int) -> str:
    parts = {"r1": first.relation.role, "r2": second.relation.role, "e": "{e}"}
    parts |= {"clause1": first.relation.clause, "clause2": second.relation.clause}
    return PAIR_PHRASINGS[phrasing].format(**parts).format(e=first.entity)


def own_answer(*facts: Fact, note: str | None = None) -> str:
    """One or two facts of one entity in the base model's own style; `note` is the month of a side remark."""
    parts = [f"the {facts[0].relation.role} of {facts[0].entity} is {facts[0].value}"]
    parts += [f"the {fact.relation.role} is {fact.value}" for fact in facts[1:]]
    return "So, " + " and ".join(parts) + (f", noted in {note}." if note else ".")


def foreign_answer(domain: Domain, fact: Fact, style: int, note: str | None = None) -> str:
    """One fact in the style of the domain's reference answers; `note` is the month of a side remark."""
    text = domain.foreign[style].format(v=fact.value, r=fact.relation.role, e=fact.entity)
    return text + (" " + domain.note.format(m=note) if note else "")


def draw_entity(domain: Domain, name: str, rng: random.Random) -> list[Fact]:
    """Draw one fact of each relation for a new entity."""
    entity = rng.choice(domain.entities).format(n=name)
    return [Fact(entity, relation, rng.choice(relation.values)) for relation in domain.relations]


def answer_check(facts: list[Fact]) -> Check:
    """Check by content: the answer has every asked value and no other value of the same relations."""
    accept = [fact.value for fact in facts]
    right = " ".join(accept).lower().split()
    reject = sorted({value for fact in facts for value in _rivals(fact) if value.lower() not in right})
    return {"kind": "answer", "accept": accept, "reject": reject}


def _rivals(fact: Fact) -> tuple[str, ...]:
    # For people only the family names are rejected: a list of all 1,600 full names would make every row large.
    if fact.relation.values is not PEOPLE:
        return fact.relation.values
    return tuple(last for last in words.LAST_NAMES if last != fact.value.split()[1])
