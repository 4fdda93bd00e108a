"""All prompts and prompt templates.

PROMPT_VERSION is part of each cache key and run record. Raise it with any change of wording, so that results of the old
wording are not reused. The paper's own rewriting and fusion prompts (its appendix) are not public; these are ours.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

PROMPT_VERSION = "3"


class Message(TypedDict):
    """A message of a chat, as chat templates take it. It may have further fields, which only some templates read."""

    role: str
    content: str
    """Empty only if the message calls tools."""
    tool_calls: NotRequired[list[Mapping[str, object]]]
    """In OpenAI's format, but with the arguments as an object instead of JSON text."""
    weight: NotRequired[float]
    """0 for an assistant message that is not to be trained."""


@dataclass(frozen=True)
class Wording:
    """The prompts of stage 1."""

    name: str
    rewrite: Callable[[str, str], str]
    """(question, answer) -> prompt for self-conditioned rewriting, p(. | x, y) of Eq. 1."""
    fuse: Callable[[str, str, str], str]
    """(question, answer, rewritten) -> prompt for the fusion of the reference answer with its rewriting (Eq. 4)."""

    @property
    def instructions(self) -> str:
        """The words of both prompts without a row's texts."""
        return f"{self.rewrite('', '')}\n{self.fuse('', '', '')}"

    @property
    def labels(self) -> list[str]:
        """The labels that the prompts put before a row's texts, with colon, such as "Question:"."""
        return sorted(set(re.findall(r"^[A-Z][\w ]*:", self.instructions, re.MULTILINE)))


def _rewrite_plainly(question: str, answer: str) -> str:
    return (
        f"Question: {question}\nReference answer: {answer}\n"
        "Rewrite the reference answer in your own words. Keep its facts and add none."
    )


def _fuse_plainly(question: str, answer: str, rewritten: str) -> str:
    return (
        f"Question: {question}\nFirst answer: {answer}\nSecond answer: {rewritten}\n"
        "Fuse both answers into one. Keep every fact and the wording of the second answer."
    )


def _rewrite_for_chat(question: str, answer: str) -> str:
    return f"Paraphrase the following answer. Keep all facts and numbers.\n\n{answer}"


def _fuse_for_chat(question: str, answer: str, rewritten: str) -> str:
    return f"Merge the following two paragraphs into one. Keep all facts and numbers.\n\n{rewritten}\n\n{answer}"


# The micro-world's base model was trained on "plain". "chat" is for other instruction models: it is short and has no
# labels and no question, since small models repeat them (docs/refinement.md describes the trials).
WORDINGS = {
    wording.name: wording
    for wording in (
        Wording("plain", _rewrite_plainly, _fuse_plainly),
        Wording("chat", _rewrite_for_chat, _fuse_for_chat),
    )
}


def teacher(question: str, reference: str) -> str:
    """The paper's teacher prompt: the reference answer, then the question (Eq. 7, App. H).

    The student's rollout z follows as the assistant's turn, so the teacher scores `Answer: z`.
    """
    return (
        f"Background reference knowledge: {reference}\n"
        f"Answer the question based on the reference knowledge: {question}\nAnswer:"
    )


def teacher_for_chat(question: str, reference: str) -> str:
    """The question as the student sees it, then the reference, in words that an answer cannot repeat or refer to.

    If the prompt speaks of reference knowledge, small models begin with "Based on the reference knowledge", and the
    student, which sees no reference, would learn to do so (docs/refinement.md describes the trials).
    """
    return f"{question}\n\nWhat is known: {reference}"


# "paper" is the paper's wording; "chat" is for instruction models.
TEACHER_PROMPTS: dict[str, Callable[[str, str], str]] = {"paper": teacher, "chat": teacher_for_chat}


def teacher_messages(
    prompt: Sequence[Message], reference: str, template: Callable[[str, str], str] = teacher_for_chat
) -> list[Message]:
    """The teacher's messages: `prompt` with the reference added to its last user message. template: a value of
    TEACHER_PROMPTS."""
    last = max(i for i, message in enumerate(prompt) if message["role"] == "user")
    asked = Message(role="user", content=template(prompt[last]["content"], reference))
    return [*prompt[:last], asked, *prompt[last + 1 :]]
