"""The floor: each reason with a text that it stops and a like one that it lets pass."""

import pytest

from raft.judges import Score
from raft.prompts import WORDINGS
from raft.refine.acceptance import REASONS, Acceptance
from raft.refine.facts import Number, asserted, hedges, in_order, missing_numbers, names, negations, numbers, unmatched
from raft.settings import RefineSettings

FLOOR = Acceptance(WORDINGS["chat"], RefineSettings(tau=0.8, min_score=0.7, max_new_words=0.2, max_lost_words=0.2))
QUESTION = "How should the lamp oil be kept?"
REFERENCE = (
    "Keep the lamp oil in a closed can, away from open fire, at 5 to 25 degrees. It does not freeze above 2 degrees. "
    "A can of 10 litres lasts 4 months, and old oil should be handed in at the harbour of Emden before May."
)
GOOD = (
    "The lamp oil should be kept in a closed can away from open fire, at 5 to 25 degrees. "
    "It does not freeze above 2 degrees. "
    "One can of 10 liters lasts four months, and old oil should be handed in at the harbour of Emden before May."
)


def problems(text, *, question=QUESTION, reference=REFERENCE, similarity=0.95, draft=False):
    return FLOOR.problems({"question": question, "answer": reference}, text, similarity=similarity, draft=draft)


def test_a_text_that_says_the_same_passes():
    assert problems(GOOD) == []
    assert problems(REFERENCE) == []
    assert problems("A: " + GOOD, reference="- A: " + REFERENCE) == []
    assert "echo" not in problems(GOOD + " Plan a: a shed.")


@pytest.mark.parametrize(
    "reason, text",
    [
        ("numbers lost", GOOD.replace("at 5 to 25 degrees", "at room temperature")),
        ("numbers lost", GOOD.replace("10 liters", "10 gallons")),
        ("numbers lost", GOOD.replace("before May", "before summer")),
        ("numbers invented", GOOD.replace("four months", "four months or 120 days")),
        ("numbers moved", GOOD.replace("10 liters", "4 liters").replace("four months", "10 months")),
        ("negation lost", GOOD.replace("does not freeze", "freezes")),
        ("negation invented", GOOD.replace("should be handed in", "should never be handed in")),
        (
            "words invented",
            GOOD + " Collectors in Emden pay for it with vouchers for groceries, theatre tickets and ferry rides.",
        ),
        ("words invented", GOOD.replace("harbour of Emden", "harbour of Emden near Pilsum")),
        ("words lost", GOOD.replace("closed can away from open fire", "can")),
        ("words lost", GOOD.replace("old oil should be handed in at the harbour of Emden", "oil should be handed in")),
        ("echo", "Here is a clear version. " + GOOD),
        ("echo", QUESTION + " " + GOOD),
        ("echo", "A: " + GOOD),
        ("echo", GOOD.replace(" It does", "\n**Answer:** It does")),
        ("echo", "**Answer**: " + GOOD),
        ("echo", "Assistant\n" + GOOD),
        ("refusal", "I'm sorry, but I can't say. " + GOOD),
        ("loop", GOOD + " " + GOOD),
        ("length", "Keep the lamp oil in a closed can."),
        ("length", GOOD + " The lamp oil is kept closed in a can" + ", in a can away from fire" * 16 + "."),
    ],
)
def test_reasons(reason, text):
    assert reason in problems(text)


@pytest.mark.parametrize("name", WORDINGS)
def test_what_a_prompt_says_is_an_echo(name):
    """Whatever its words are: each of its sentences, and the labels in front of a row's texts."""
    floor = Acceptance(WORDINGS[name], FLOOR.settings)
    sentences = [line for line in floor.wording.instructions.splitlines() if len(line.split()) >= 5]
    assert sentences
    for echo in [*sentences, *floor.wording.labels]:
        found = floor.problems({"question": QUESTION, "answer": REFERENCE}, f"{echo} {GOOD}", similarity=0.9)
        assert "echo" in found, echo


def test_measures_are_held_against_the_settings():
    assert problems(GOOD, similarity=0.79) == ["similarity"]
    assert problems(GOOD, similarity=float("nan")) == ["similarity"]
    assert FLOOR.with_score([], [Score(0.69)]) == ["score"]
    assert FLOOR.with_score(["similarity", "echo"], [Score(0.9), Score(None, problem="none")]) == [
        "similarity",
        "score",
        "echo",
    ]
    assert FLOOR.with_score([], [Score(0.7)]) == FLOOR.with_score([], []) == []
    assert problems(GOOD, similarity=0.8) == []


def test_a_draft_may_lack_what_the_fusion_puts_back_and_may_invent_nothing():
    short = "The lamp oil should be kept in a closed can."
    assert {"numbers lost", "negation lost", "words lost", "length"} == set(problems(short))
    assert problems(short, draft=True) == []
    assert problems(short[:-1] + " at 40 degrees.", draft=True) == ["numbers invented"]


def test_a_sentence_may_be_left_out_and_no_word_of_one():
    reference = (
        "Chronic bronchitis mostly comes from smoke. Adults who get chronic bronchitis are smokers. It is common."
    )
    question = "Who gets bronchitis?"
    strict = Acceptance(WORDINGS["chat"], RefineSettings(tau=0.8, min_score=0.7))

    def found(text, **options):
        row = {"question": question, "answer": reference}
        return strict.problems(row, text, similarity=0.95, **options)

    assert found("Chronic bronchitis mostly comes from smoke. Adults who get chronic bronchitis are smokers.") == []
    lost = "Chronic bronchitis mostly comes from smoke. Adults who get bronchitis are smokers. It is common."
    assert found(lost) == ["words lost"]
    assert found(lost, draft=True) == []  # the fusion puts it back


def test_what_the_reference_says_itself_is_no_fault():
    reference = "I'm sorry, but the first version is not for sale. Here is a list of the others: red, blue, green."
    assert problems(reference, reference=reference) == []
    loop = "ha ha ha ha ha ha ha ha"
    assert problems(loop, reference=loop, question="What does the parrot say?") == []


def test_numbers_of_the_question_may_come_and_go():
    question, reference = "What is gear 3 for?", "It is for hills."
    assert problems("Gear 3 is for hills.", question=question, reference=reference) == []
    assert problems("It is for hills.", question=question, reference="Gear 3 is for hills.") == []


def test_every_reason_has_words():
    assert all(says and not says.endswith(".") for says in REASONS.values())


@pytest.mark.parametrize(
    "text, expected",
    [
        ("1,000 mg", {("1000", "mg")}),
        ("1000 milligrams", {("1000", "mg")}),
        ("2.50 %", {("2.5", "percent")}),
        ("fifteen percent of them", {("15", "percent")}),
        ("a 20-year-old", {("20", "year")}),
        ("5-10 days", {("5", ""), ("10", "day")}),
        ("vitamin B12 and 21q22.1", {("b12", ""), ("21q22.1", "")}),
        ("COVID-19", {("covid-19", "")}),
        ("1. Rest.\n2. Drink.", set()),
        ("in May 2009", {("may", ""), ("2009", "")}),
        ("They may go. March on.", set()),
        ("one of them, and nothing", set()),
    ],
)
def test_numbers(text, expected):
    assert set(numbers(text)) == {Number(*number) for number in expected}


def test_missing_numbers():
    assert missing_numbers(numbers("5 to 10 mg"), numbers("5 mg to 10 mg")) == set()
    assert missing_numbers(numbers("10 mg"), numbers("10 kg")) == {Number("10", "mg")}


def test_numbers_come_in_their_order():
    reference = numbers("12 percent of those under 60, 22 percent of those of 60 to 69, 30 percent above")
    assert in_order(numbers("12 percent under 60, 22 percent of 60 to 69, 30 percent above"), reference)
    assert in_order(numbers("Under 60 it is rarer than from 60 to 69, where it is new to 4."), reference)
    assert not in_order(numbers("22 percent of those under 60, 30 percent of 60 to 69"), reference)


def test_negations():
    assert unmatched(negations("It isn't contagious."), negations("It is not a contagious thing.")) == 0
    assert unmatched(negations("It is not contagious."), negations("It is contagious, not rare, they say.")) == 1
    assert unmatched(negations("It is never contagious."), negations("No fever comes.")) == 1
    assert unmatched(negations("No."), negations("No, it has not.")) == 0


def test_hedges():
    assert unmatched(hedges("You usually can't smell it."), hedges("You can't smell it.")) == 1
    assert unmatched(hedges("You usually can't smell it."), hedges("Often you can't smell it.")) == 0
    assert unmatched(hedges("It may spread. Most people recover."), hedges("People may recover.")) == 1
    assert unmatched(hedges("It spreads in May."), hedges("It spreads in spring.")) == 0
    assert unmatched(hedges("It spreads."), hedges("It may spread.")) == 0  # a hedge more invents nothing


def test_a_lost_hedge_is_a_reason_for_a_fused_answer_and_not_for_a_rewriting():
    reference, text = "The fever usually goes away with tea and rest.", "The fever goes away with tea and rest."
    assert problems(text, reference=reference) == ["hedge lost"]
    assert problems(text, reference=reference, draft=True) == []


def test_what_was_denied_is_not_said():
    reference = "You can't smell it or taste it, but it may be a problem. It is not sold."

    def found(reference, text):
        return asserted(reference, negations(reference), text, negations(text))

    assert found(reference, "You can't smell it, but you can taste it.") == {"tast"}
    assert found(reference, "You cannot taste or smell it, and it may be a problem.") == set()
    assert found("It is sold here, but not sold there.", "It is sold.") == set()


def test_names():
    assert names("The Institute of Emden (NLWKN) is near. However, Jansen's boat left.") == {
        "institute",
        "emden",
        "nlwkn",
        "jansen",
    }
