"""Every prompt and template that a model sees, in one place.

The version is part of each cache key and run record: raise it with any change of wording, and nothing that was made
with the old words is taken for new. The paper's own rewriting and fusion prompts (its appendix) are not public; these are ours.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

PROMPT_VERSION = "3"


class Message(TypedDict):
    role: str
    content: str


@dataclass(frozen=True)
class Wording:
    """How stage 1 asks for a rewriting and for a fusion."""

    name: str
    rewrite: Callable[[str, str], str]
    """(question, answer): self-conditioned rewriting, p(. | x, y) of Eq. 1."""
    fuse: Callable[[str, str, str], str]
    """(question, answer, rewritten): fusion of the reference answer with its rewriting (Eq. 4)."""

    @property
    def instructions(self) -> str:
        """All that the prompts say beside a row's own text."""
        return f"{self.rewrite('', '')}\n{self.fuse('', '', '')}"

    @property
    def labels(self) -> list[str]:
        """What the prompts put in front of a row's texts, colon included, as in "Question:"."""
        return sorted(set(re.findall(r"^[A-Z][\w ]*:", self.instructions, re.MULTILINE)))


def _rewrite_plainly(question: str, answer: str) -> str:
    return f"Question: {question}\nReference answer: {answer}\nRewrite the reference answer in your own words. Keep its facts and add none."


def _fuse_plainly(question: str, answer: str, rewritten: str) -> str:
    return (
        f"Question: {question}\nFirst answer: {answer}\nSecond answer: {rewritten}\n"
        "Fuse both answers into one. Keep every fact and the wording of the second answer."
    )


def _rewrite_for_chat(question: str, answer: str) -> str:
    return f"Paraphrase the following answer. Keep all facts and numbers.\n\n{answer}"


def _fuse_for_chat(question: str, answer: str, rewritten: str) -> str:
    return f"Merge the following two paragraphs into one. Keep all facts and numbers.\n\n{rewritten}\n\n{answer}"


# "plain" is what the micro-world's base model was trained on. "chat" is for instruction models as they come: short, without
# labels and without the question, all of which a small model repeats (docs/refinement.md has what was tried).
WORDINGS = {
    wording.name: wording
    for wording in (
        Wording("plain", _rewrite_plainly, _fuse_plainly),
        Wording("chat", _rewrite_for_chat, _fuse_for_chat),
    )
}


def teacher(question: str, reference: str) -> str:
    """What the frozen teacher is asked: the question behind the reference answer (Eq. 7, App. H of the paper).

    The student's rollout z follows as the assistant's turn, so the teacher scores `Answer: z`.
    """
    return (
        f"Background reference knowledge: {reference}\nAnswer the question based on the reference knowledge: {question}\n"
        "Answer:"
    )


def teacher_for_chat(question: str, reference: str) -> str:
    """The question first, as the student is asked it, and nothing that an answer could repeat or refer to: where a
    prompt speaks of reference knowledge, a small model begins "Based on the reference knowledge", and the student, who
    is shown none, would learn to (docs/refinement.md has what was tried)."""
    return f"{question}\n\nWhat is known: {reference}"


# By name: "paper" to the letter, "chat" for instruction models as they come.
TEACHER_PROMPTS: dict[str, Callable[[str, str], str]] = {"paper": teacher, "chat": teacher_for_chat}


def teacher_messages(
    prompt: Sequence[Message], reference: str, template: Callable[[str, str], str] = teacher_for_chat
) -> list[Message]:
    """The chat that the teacher sees: `prompt` with the reference in its last user turn. template: a value of
    TEACHER_PROMPTS."""
    last = max(i for i, message in enumerate(prompt) if message["role"] == "user")
    asked = Message(role="user", content=template(prompt[last]["content"], reference))
    return [*prompt[:last], asked, *prompt[last + 1 :]]
