"""The micro-world's data: deterministic, honest splits, answerable, and readable by its tokenizer."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft import prompts
from raft.demo import known, words
from raft.demo.domains import DOMAINS, PEOPLE, draw_entity
from raft.demo.formats import FORMATS
from raft.demo.settings import REFINE
from raft.demo.skills import SKILLS
from raft.demo.tasks import TASKS
from raft.demo.tokenizer import build_tokenizer
from raft.demo.world import ENTITIES, draw_world
from raft.errors import ConfigError
from raft.evaluate import score
from raft.refine.acceptance import Acceptance

GENERATORS = {**SKILLS, **FORMATS, **TASKS}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_world_is_a_function_of_its_seed(domain):
    assert draw_world(domain, 3) == draw_world(domain, 3)
    assert draw_world(domain, 3).train != draw_world(domain, 4).train


@pytest.mark.parametrize("domain", DOMAINS)
def test_sizes_and_splits(domain):
    world = draw_world(domain, 0)
    assert 200 <= len(world.train) <= 400
    assert len({row["id"] for row in world.train}) == len(world.train)
    for split in (world.validation, world.test):
        assert len({item["id"] for item in split}) == len(split)
        assert {item["suite"] for item in split} == {"domain", "general", "format"}
    skills = Counter(item["skill"] for item in world.test if item["suite"] == "domain")
    assert skills == {"paraphrase": 10 * ENTITIES, "two facts": 2 * ENTITIES}


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_domain_question_is_in_two_splits(domain):
    world = draw_world(domain, 1)
    asked = [
        {row["question"] for row in rows if row.get("suite", "domain") == "domain"}
        for rows in (world.train, world.validation, world.test)
    ]
    assert not asked[0] & asked[1] and not asked[0] & asked[2] and not asked[1] & asked[2]


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_tested_fact_was_trained(domain):
    world = draw_world(domain, 2)
    trained = " \n ".join(row["question"] + " " + row["answer"] for row in world.train)
    for item in world.test:
        if item["suite"] == "domain":
            assert all(value in trained for value in item["check"]["accept"])


def test_domains_use_no_name_that_the_base_model_knows():
    for domain in DOMAINS:
        text = " ".join(row["question"] for row in draw_world(domain, 0).train).split()
        assert not set(known.known_names()) & set(text)


def test_no_name_is_a_value():
    """A company called Silver would make every answer about it name a wrong color."""
    values = {
        value.lower()
        for domain in DOMAINS.values()
        for relation in domain.relations
        if relation.values is not PEOPLE
        for value in relation.values
    }
    assert not {name.lower() for name in words.NAMES} & (values | {name.lower() for name in words.LAST_NAMES})


def test_reference_answers_are_not_in_the_models_style():
    for domain in DOMAINS:
        assert not any(row["answer"].startswith("So,") for row in draw_world(domain, 0).train)


def test_unknown_domain_is_one_line():
    with pytest.raises(ConfigError, match="expected one of business_industry, .*found 'cooking'"):
        draw_world("cooking", 0)


@pytest.mark.parametrize("name", GENERATORS)
def test_own_answers_pass_their_check_and_other_answers_do_not(name):
    rng = random.Random(name)
    examples = [GENERATORS[name](rng) for _ in range(60)]
    assert all(score(example.check, example.answer) == 1.0 for example in examples)
    assert all(score(example.check, "") == 0.0 for example in examples)
    # Repeating the question is no answer (copying aside, where the words of the answer stand in it).
    if name in SKILLS and name not in ("copy", "sort"):
        wrong = [example for example in examples if score(example.check, example.question) == 1.0]
        assert len(wrong) <= 5, wrong[:2]


@pytest.mark.parametrize("name", GENERATORS)
def test_text_survives_the_tokenizer(tokenizer, name):
    rng = random.Random(f"tokenizer {name}")
    for _ in range(50):
        example = GENERATORS[name](rng)
        for text in (example.question, example.answer):
            ids = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == text


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), domain=st.sampled_from(sorted(DOMAINS)))
def test_every_seed_is_within_the_vocabulary(seed, domain):
    tokenizer = build_tokenizer_once()
    world = draw_world(domain, seed)
    text = "\n".join(f"{row['question']} {row['answer']}" for row in world.train)
    assert tokenizer.unk_token_id not in tokenizer(text).input_ids


def build_tokenizer_once(cache={}):  # noqa: B006  # hypothesis allows no function-scoped fixture
    if "tokenizer" not in cache:
        cache["tokenizer"] = build_tokenizer()
    return cache["tokenizer"]


def test_the_tasks_use_the_shipped_prompts():
    rng = random.Random(0)
    assert all("Background reference knowledge: " in TASKS["reading"](rng).question for _ in range(20))
    rewriting = TASKS["rewriting"](rng).question
    asked, answer = rewriting.removeprefix("Question: ").split("\nReference answer: ")
    assert rewriting == prompts.WORDINGS[REFINE.prompts].rewrite(asked, answer.split("\n")[0])


@pytest.mark.parametrize("name", ["rewriting", "fusing"])
def test_what_the_base_model_has_learnt_to_say_passes_the_floor(name):
    rng, floor = random.Random(name), Acceptance(prompts.WORDINGS[REFINE.prompts], REFINE)
    for _ in range(200):
        example = TASKS[name](rng)
        asked, given = re.fullmatch(
            r"Question: (.*)\n(?:Reference|First) answer: (.*)\n.*", example.question, re.DOTALL
        ).groups()
        row = {"question": asked, "answer": given.split("\n")[0]}
        assert floor.problems(row, example.answer, similarity=1.0, draft=name == "rewriting") == [], row


def test_vocabulary_is_small_and_has_no_doubles(tokenizer):
    assert len(tokenizer) < 2000
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_entities_have_all_relations():
    for domain in DOMAINS.values():
        facts = draw_entity(domain, "Acorn", random.Random(0))
        assert [fact.relation for fact in facts] == list(domain.relations)
