"""Rephrases MedQuAD's questions by patterns. The new question asks for the same fact.

The new questions fit singular and plural topics, because the program cannot tell which one it has.
"""

import re

# Patterns of MedQuAD's questions, without case and question mark, each with the new question.
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
# Questions with two topics ("how common is A for B?") fit no new question.
_TWO_TOPICS = re.compile(r"how .+ for .+", re.IGNORECASE)
# Titles of brochures: the name of a series before the topic, or no topic at all.
_SERIES = re.compile(r"(?:parasites - |what i need to know about (?:living with )?)(?:.+ - )?(.+)", re.IGNORECASE)
_NO_TOPIC = re.compile(r"(?:prevent |your guide)|.*\bmy\b|.*: .*\b(?:you|your|right|need)\b", re.IGNORECASE)


def rephrase(question: str) -> str | None:
    """Another wording of a MedQuAD question, never the same; None if no pattern fits or it has no topic."""
    asked = " ".join(question.split()).rstrip("? ")
    if _TWO_TOPICS.fullmatch(asked):
        return None
    for pattern, other in PATTERNS:
        if found := pattern.fullmatch(asked):
            topic = _topic(found[1])
            return None if topic is None else other.format(topic)
    return None


def _topic(text: str) -> str | None:
    """The topic of a question, without the series that it was published in; None for a title without a topic."""
    text = text.strip()
    if _NO_TOPIC.match(text):
        return None
    if found := _SERIES.fullmatch(text):
        text = found[1]
    return text.partition(": ")[0]
