"""What an evaluation gives: eval/NAME.json of a run folder."""

from typing import NotRequired, TypedDict


class Sample(TypedDict):
    """One item with the answer of the model."""

    id: str
    suite: str
    skill: str | None  # a part of the suite; None where the item names none
    question: str
    output: str  # the answer without its thought
    finish_reason: str  # "stop", or "length" for an answer that was cut
    score: float  # in [0, 1]
    thought: NotRequired[str]  # what stood before the output; it is not scored


class Evaluation(TypedDict):
    """The scores, in [0, 1], of one model, with every sample."""

    scores: dict[str, float]  # suite -> mean
    n: dict[str, int]  # suite -> number of items
    by_skill: dict[str, dict[str, float]]  # suite -> skill -> mean; without suites that have no skills
    samples: list[Sample]  # in the order of the items


class Sampled(TypedDict):
    """The settings that an evaluation's answers depend on."""

    temperature: float
    max_tokens: int
    max_model_len: int  # tokens of prompt and answer
    seed: int


class Identity(TypedDict):
    """What a result depends on. Another evaluation with the same would give the same result."""

    fingerprint: str  # of the model's weights
    items: str  # digest of the fields that determine prompts and scores
    settings: Sampled


class Result(Evaluation):
    """eval/NAME.json. That of the demo holds no more than the model and its evaluation."""

    model: str
    data: NotRequired[str]  # the file of the items
    engine: NotRequired[str]  # its name
    fingerprint: NotRequired[str]  # these three as in `Identity`
    items: NotRequired[str]
    settings: NotRequired[Sampled]
    seconds: NotRequired[float]
    trained_items: NotRequired[list[str]]  # ids of items whose question is in the training rows
    retention: NotRequired[dict[str, float]]  # suite -> score as a share of the base model's, where that was scored
