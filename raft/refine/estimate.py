"""What a refinement will ask of its models, before any of them is asked: requests and tokens.

The requests of the rewriting are known. How many rows the filter keeps and how many rounds they take is not: for fusion
and judges the number is the most there can be. Tokens are means over rows that are drawn, with the prompts of the run,
in which the answer stands for the rewriting.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from raft.chat.pool import judge_name
from raft.errors import InputError
from raft.judges import Candidate
from raft.judges.model import ModelJudge
from raft.judges.verdict import judge_chat
from raft.progress import amount
from raft.prompts import WORDINGS, Message
from raft.refine.context import Models
from raft.refine.fuse import fuse_chat
from raft.refine.rewrite import rewrite_chat, template_options
from raft.refine.slices import has_wording
from raft.refine.stored import Scored, Stored
from raft.rendering import Controls, chat_text
from raft.row_spool import RowsById
from raft.rows import Row
from raft.settings import RefineSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE = 200
"""Rows whose prompts are counted at most."""
VERDICT = '{"reason": "It says what the reference says, in other words, and adds nothing.", "score": 0.9}'
"""For the length of what a judge says."""


@dataclass(frozen=True)
class Estimate:
    """Of one role."""

    role: str
    """rewriter, fuser or judge."""
    model: str
    requests: int
    """So many, or so many at most: all but the rewriter's."""
    stored: int
    """Texts or scores that the stores have, and that are not asked for."""
    prompt_tokens: int
    """Of all requests, about."""
    new_tokens: int
    """Of all requests, about."""
    most_tokens: int
    """New ones, at most."""

    def __str__(self) -> str:
        most = "" if self.role == "rewriter" else "at most "
        stored = f" ({self.stored:,} stored)" if self.stored else ""
        return (
            f"{self.role} {self.model}: {most}{amount(self.requests, 'request')}{stored}, about "
            f"{self.prompt_tokens:,} prompt tokens, {self.new_tokens:,} new (at most {self.most_tokens:,})"
        )


def estimate_lines(estimates: Sequence[Estimate]) -> list[str]:
    """A line for the rewriter, one for the fuser, and one for all judges that are models, where there are any."""
    by_role: dict[str, list[str]] = {}
    for one in estimates:
        by_role.setdefault(one.role, []).append(str(one))
    return [f"refine: {'; '.join(found)}" for found in by_role.values()]


def estimate(
    rows: Sequence[Row],
    models: Models,
    settings: RefineSettings,
    tokenizer: "PreTrainedTokenizerBase",
    refine_dir: Path,
    *,
    seed: int,
    retry_failed: bool = False,
    same_settings: bool = False,
) -> list[Estimate]:
    """For the rewriter, the fuser, and each judge that is a model. Reads the stores in `refine_dir`, if there are any,
    and writes nothing. tokenizer: of the model that is refined for, also for what others are asked.
    same_settings: whether a run in the folder that came to its end had these settings, so that its rows are done."""
    texts = RowsById(rows, {row["id"]: i for i, row in enumerate(rows) if has_wording(row)})
    store = Stored(texts, models, settings, refine_dir, seed, retry_failed)
    rounds = settings.rounds if settings.fuse_temperature > 0 else 1
    rewritings = store.rewritings()
    fusions = store.fusions(rewritings, rounds)
    wording = WORDINGS[settings.prompts]
    quiet: Any = partial(tokenizer, verbose=False)  # a prompt for another model may be longer than this one reads

    @cache  # roles are asked with the same texts
    def length(text: str) -> int:
        return len(Controls.of(tokenizer).encode(quiet, text))

    def tokens(chat: Sequence[Message], options: Mapping[str, object] = MappingProxyType({})) -> int:
        try:
            return length(chat_text(tokenizer, chat, **options))
        except InputError:  # the template of another model may take what this one refuses
            return sum(length(message["content"]) for message in chat)

    def answer(row: Row) -> int:
        """With its end."""
        return min(length(row["answer"]) + 1, settings.max_tokens)

    new = [row_id for row_id in texts if row_id not in rewritings]
    about = _about(texts, new, len(new), lambda row: tokens(rewrite_chat(row, wording), template_options(row)), answer)
    model = judge_name(settings.rewriter)
    found = [Estimate("rewriter", model, len(new), len(rewritings), *about, len(new) * settings.max_tokens)]

    closed = {row_id for row_id, there in rewritings.items() if not there}
    if same_settings:
        closed |= store.finished(rewritings, fusions)
    left = [row_id for row_id in texts if row_id not in closed]
    most = len(left) * rounds - sum(row_id not in closed for row_id, _ in fusions)
    about = _about(
        texts, left, most, lambda row: tokens(fuse_chat(row, row["answer"], wording), template_options(row)), answer
    )
    found.append(Estimate("fuser", judge_name(settings.fuser), most, len(fusions), *about, most * settings.max_tokens))

    scores = store.scores(rewritings, fusions, closed)
    failed = sum(not there for (row_id, _), there in fusions.items() if row_id not in closed)
    verdict = length(VERDICT)
    for judge in models.judges:
        if isinstance(judge, ModelJudge):
            scored = scores.get(judge.name, Scored())
            texts_each = 1 + rounds + (settings.margin is not None)  # the reference too
            most = len(left) * texts_each - failed - scored.of_open_rows
            about = _about(texts, left, most, lambda row: tokens(judge_chat(_candidate(row))), lambda _: verdict)
            found.append(Estimate("judge", judge.name, most, scored.texts, *about, most * judge.max_tokens))
    return found


def _about(
    rows: Mapping[str, Row],
    ids: Sequence[str],
    requests: int,
    prompt: Callable[[Row], int],
    reply: Callable[[Row], int],
) -> tuple[int, int]:
    """Tokens of so many prompts and replies, from those of rows that are drawn."""
    drawn = [rows[row_id] for row_id in random.Random(0).sample(ids, min(SAMPLE, len(ids)))]
    if not requests or not drawn:
        return 0, 0
    prompts, replies = sum(map(prompt, drawn)), sum(map(reply, drawn))
    return round(prompts * requests / len(drawn)), round(replies * requests / len(drawn))


def _candidate(row: Row) -> Candidate:
    return Candidate(row["id"], row["question"], row["answer"], row["answer"])
