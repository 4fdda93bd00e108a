"""Every prompt and template that a model sees, in one place.

The version is part of each cache key and run record: raise it with any change of wording, and nothing that was made
with the old words is taken for new. The paper's own rewriting and fusion prompts (its appendix) are not public; these are ours.
"""

from collections.abc import Sequence
from typing import TypedDict

PROMPT_VERSION = "1"


class Message(TypedDict):
    role: str
    content: str


def rewrite(question: str, answer: str) -> str:
    """Self-conditioned rewriting, p(. | x, y) of Eq. 1."""
    return f"Question: {question}\nReference answer: {answer}\nRewrite the reference answer in your own words. Keep its facts and add none."


def fuse(question: str, answer: str, rewritten: str) -> str:
    """Fusion of the reference answer with its rewriting (Eq. 4)."""
    return (
        f"Question: {question}\nFirst answer: {answer}\nSecond answer: {rewritten}\n"
        "Fuse both answers into one. Keep every fact and the wording of the second answer."
    )


def teacher(question: str, reference: str) -> str:
    """What the frozen teacher is asked: the question behind the reference answer (Eq. 7, App. H of the paper).

    The student's rollout z follows as the assistant's turn, so the teacher scores `Answer: z`.
    """
    return (
        f"Background reference knowledge: {reference}\n"
        f"Answer the question based on the reference knowledge: {question}\nAnswer:"
    )


def teacher_messages(prompt: Sequence[Message], reference: str) -> list[Message]:
    """The chat that the teacher sees: `prompt` with its last user turn put behind the reference."""
    last = max(i for i, message in enumerate(prompt) if message["role"] == "user")
    asked = Message(role="user", content=teacher(prompt[last]["content"], reference))
    return [*prompt[:last], asked, *prompt[last + 1 :]]
