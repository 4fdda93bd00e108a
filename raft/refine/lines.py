"""The lines of the files in `refine/` of a run."""

from typing import NotRequired, TypedDict

from raft.prompts import Message


class StoredLine(TypedDict):
    """What every line of a store has."""

    id: str
    """Of the row."""
    key: str
    """`store.row_key` of all that the line was made of."""


class TextLine(StoredLine):
    """rewrite.jsonl, fuse.jsonl: what a chat model said, or why there is no text."""

    text: str | None
    """Without the model's thought. None where it failed."""
    tokens: int
    """Generated for it, also where it failed."""
    failed: str | None
    """Why there is no text; None where there is one."""
    max_model_len: NotRequired[int]
    """Only where it failed: the setting at that time, in tokens. With another one it is tried again."""
    thought: NotRequired[str]
    """Only where the model thought first."""
    round: NotRequired[int]
    """Only in fuse.jsonl: of the fusion, from 1."""
    retry: NotRequired[int]
    """Only where a failed text was asked for again (`--retry-failed`): how often, from 1."""


class SimilarityLine(StoredLine):
    """filter.jsonl: how near a rewriting or a fused candidate is to the reference."""

    similarity: float
    """Cosine of the two, from -1 to 1."""


class JudgeLine(StoredLine):
    """judge.jsonl: what one judge says of one text."""

    round: int
    """Of the fusion, from 1; 0 for a rewriting, -1 for the reference itself (`refine.margin`)."""
    judge: str
    score: float | None
    """In [0, 1]; None where it is unusable, which counts as 0."""
    reason: NotRequired[str]
    """Of the judge, where it gives one."""
    problem: NotRequired[str]
    """Why the score is unusable."""
    flag: NotRequired[str]
    """What a person should look at, such as words in the text that speak to its judge."""


class FailedLine(TypedDict):
    """failed.jsonl: a row that keeps its reference answer because something went wrong."""

    id: str
    stage: str
    """rewrite, filter or fuse."""
    reason: str


class Rejected(TypedDict):
    """What spoke against the texts of a row: keys of `acceptance.REASONS`; an empty list: nothing."""

    rewrite: list[str]
    fuse: list[list[str]]
    """One list for each candidate that could be judged, in the order of the rounds."""


class FusedRow(TypedDict):
    """fused.jsonl: a row of the input with what the refinement made of it. Its other fields are kept unchanged."""

    id: str
    question: str
    answer: str
    """The reference."""
    rewritten: str | None
    """The model's own wording of the answer; None where there is none."""
    similarity: float | None
    """Cosine of answer and rewriting; None where there is no rewriting, or it could not be compared."""
    kept: bool
    """Whether there is a fused answer that passed the floor."""
    fused_answer: str
    """To be trained on; the reference where the row is not kept."""
    judge_scores: list[float]
    """Of the fused answer, in [0, 1], in the order of the judges; empty where the row is not kept."""
    rounds: int
    """How many rounds of fusion were done."""
    rejected: Rejected
    judge_flag: NotRequired[str]
    """What a person should look at: a judge found words in the row's texts that speak to it."""
    prompt: NotRequired[list[Message]]
    """Absent where it is the question alone."""


Summary = dict[str, float | None]
"""Of numbers: "n", "mean", "p05", "p25", "p50", "p75", "p95"; all but n are None where n is 0."""


class Diagnostics(TypedDict):
    """diagnostics.json: what the refinement did to the data. From `embedding` on over the kept rows alone."""

    rows: int
    kept: int
    kept_share: float | None
    """In [0, 1]; None without rows."""
    failed: int
    """Rows in failed.jsonl."""
    reasons: dict[str, dict[str, int]]
    """Stage (rewrite, fuse) -> "texts", "rejected", and for each key of `acceptance.REASONS` the texts that have it."""
    similarity: Summary
    """Cosine of answer and rewriting, of all rows that have one."""
    tau: dict[str, dict[str, int]]
    """tau from 0.5 to 0.95 -> rewritings that are "similar" enough, and those of them that "pass" the rest."""
    rounds: Summary
    """Of the rows with at least one round."""
    judges: dict[str, Summary]
    """Judge -> its scores of the kept rows, and "unusable": how many of all its scores were."""
    agreement: float | None
    """Krippendorff's alpha of the judges, scores as an interval scale, over all texts that all of them scored: 1 is
    perfect, 0 is chance. None where it is not defined, as for one judge."""
    flagged: int
    """Rows with a judge_flag."""
    embedding: dict[str, Summary]
    """Cosines: raw_refined, raw_own (own: the rewriting), own_refined."""
    overlap: dict[str, Summary]
    """F1 of words (1gram_f1) and of pairs of words (2gram_f1), in [0, 1]."""
    length: dict[str, Summary]
    """Words: raw_words, refined_words, shift_words (refined less raw), ratio (refined over raw)."""
    characters: dict[str, dict[str, float]]
    """Class of characters -> its share in "raw" and in "refined"; and "distance" -> "value": half the sum of the
    differences between the two."""
    nll: NotRequired[dict[str, Summary] | dict[str, str]]
    """Negative log-likelihood under the model before training, in nats a token: raw, refined, shift (refined less raw).
    {"failed": reason} where it could not be computed; absent where it was not asked for."""
