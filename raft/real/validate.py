"""The choice between the points of a grid, on rows that are not trained and questions that are not tested."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raft.progress import Progress
from raft.prompts import Message
from raft.real.evaluate import CHOICE_TOKENS
from raft.real.general import Question
from raft.real.medquad import Item


def validate(folder: str | Path, items: Sequence[Item], questions: Sequence[Question]) -> dict[str, float]:
    """{"domain", "general", "value"} of the model in `folder`, each in [0, 1].

    domain and general: the probability of the right one among the choices, by the mean log p of a token; smoother than
    the share of right choices, which steps by 1 / 60. value: their harmonic mean, as in `raft.demo.grid`: who fine-tunes
    on a domain wants both.
    """
    import torch

    from raft.evaluate.likelihood import log_likelihoods
    from raft.models import load_model, load_tokenizer

    model = load_model(folder, dtype=None if torch.cuda.is_available() else torch.float32)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    tokenizer = load_tokenizer(folder)

    def right(asked: Sequence[tuple[str, Sequence[str], int]], label: str, limit: int | None) -> float:
        pairs = [(question, text) for question, texts, _ in asked for text in texts]
        with Progress(f"validate: {label}", len(pairs), "text", per_call=True) as phase:
            chats = [[Message(role="user", content=question)] for question, _ in pairs]
            found = iter(log_likelihoods(model, tokenizer, chats, [text for _, text in pairs], max_tokens=limit))
            phase.add(len(pairs))
        shares = []
        for _, texts, answer in asked:
            values = [next(found) for _ in texts]
            # A text without tokens has no likelihood, and is not chosen.
            shares.append(_share([-math.inf if value is None else value for value in values], answer))
        return statistics.fmean(shares)

    domain = right([(i.question, (i.answer, *i.wrong), 0) for i in items if i.wrong], "domain", CHOICE_TOKENS)
    general = right([(q.question, q.choices, q.answer) for q in questions], "general", None)
    return {"domain": domain, "general": general, "value": statistics.harmonic_mean((domain, general))}


def _share(values: Sequence[float], right: int) -> float:
    """softmax(values)[right]"""
    return 1 / sum(math.exp(value - values[right]) for value in values)


def best(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The point of the highest value; of equal ones the first, which is the cheaper."""
    return max(points, key=lambda point: point["value"])
