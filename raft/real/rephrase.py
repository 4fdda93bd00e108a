"""MedQuAD's questions asked otherwise, by their patterns: for the same fact, so whoever learned the fact can answer.

The new questions fit a singular and a plural topic alike, for a program does not know which one it has.
"""

import re

# Patterns of the data (case and question marks aside), and the question that takes their place.
PATTERNS = tuple(
    (re.compile(pattern, re.IGNORECASE), question)
    for pattern, question in (
        (r"what (?:is \(are\)|is|are) (?!the )(.+)", "Could you give me an overview of {}?"),
        (r"do you have information about (.+)", "What should I know about {}?"),
        (r"what are the treatments for (.+)", "How can {} be treated?"),
        (r"what are the symptoms of (.+)", "Which signs can point to {}?"),
        (r"who is at risk for (.+)", "Which people are more likely to have {}?"),
        (r"what is the outlook for (.+)", "What can people with {} expect in the long run?"),
        (r"what causes (.+)", "What can lead to {}?"),
        (r"how to prevent (.+)", "What can be done to avoid {}?"),
        (r"how to diagnose (.+)", "Which tests can show that someone has {}?"),
        (r"how (?:is|are) (.+) diagnosed", "Which tests can show that someone has {}?"),
        (r"how many people are affected by (.+)", "What is the prevalence of {}?"),
        (r"how common (?:is|are) (.+)", "What is the prevalence of {}?"),
        (r"is (.+) inherited", "Can {} be passed on from parents to their children?"),
        (r"what research \(or clinical trials\) is being done for (.+)", "Which studies are under way on {}?"),
        (r"what are the genetic changes related to (.+)", "Which genes are involved in {}?"),
        (r"what are the complications of (.+)", "Which further health problems can arise from {}?"),
        (r"what to do for (.+)", "What can be done about {}?"),
        (r"what are the stages of (.+)", "Into which stages can {} be divided?"),
    )
)
# Questions with a second topic behind the first ("how common is A for B?") do not fit into another one.
_TWO_TOPICS = re.compile(r"how .+ for .+", re.IGNORECASE)
# Titles of brochures: a series before the topic, or no topic at all.
_SERIES = re.compile(r"(?:parasites - |what i need to know about (?:living with )?)(?:.+ - )?(.+)", re.IGNORECASE)
_NO_TOPIC = re.compile(r"(?:prevent |your guide)|.*\bmy\b|.*: .*\b(?:you|your|right|need)\b", re.IGNORECASE)


def rephrase(question: str) -> str | None:
    """Another wording of a question of MedQuAD, never the same; None where its pattern is not known."""
    asked = " ".join(question.split()).rstrip("? ")
    if _TWO_TOPICS.fullmatch(asked):
        return None
    for pattern, other in PATTERNS:
        if found := pattern.fullmatch(asked):
            topic = _topic(found[1])
            return None if topic is None else other.format(topic)
    return None


def _topic(text: str) -> str | None:
    """What a question is about, without the series that it was published in; None for a title that is no topic."""
    text = text.strip()
    if _NO_TOPIC.match(text):
        return None
    if found := _SERIES.fullmatch(text):
        text = found[1]
    return text.partition(": ")[0]
