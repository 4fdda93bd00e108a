"""What `raft real` keeps of its evaluations, and what it makes of them. Scores are in [0, 1]."""

from collections.abc import Mapping
from typing import NotRequired, TypedDict

from raft.stats.intervals import Spread
from raft.stats.tests import Comparison


class Answer(TypedDict):
    """What the model wrote."""

    output: str  # without the thought
    finish_reason: str  # "stop", or "length" for an answer that was cut
    thought: NotRequired[str]


class Measures(TypedDict):
    """Likeness of an answer and its reference."""

    similarity: float  # cosine of the sentence embeddings, in [-1, 1]; 0 for an empty answer
    recall: float  # share of the reference's content words whose stems occur in the answer
    f1: float  # token F1 as in SQuAD
    rouge_l: float
    words: int  # of the answer


class DomainAnswer(Answer, Measures):
    """A free answer to a question of the domain."""

    set: str  # "rephrased" or "unseen"
    id: str
    question: str
    reference: str


class DomainChoice(TypedDict):
    """The same question with a choice among answers, by their likelihoods: mean log p in nats a token."""

    set: str
    id: str
    loglik: float  # of the right answer
    wrong_loglik: list[float]
    choice: float | None  # 1 if the right answer is the likeliest, else 0; None without wrong ones


class Followed(TypedDict):
    """Of each instruction of an IFEval prompt: whether an answer follows it, by the strict and the loose rules."""

    strict: list[bool]
    loose: list[bool]


class IFEvalAnswer(Answer, Followed):
    """The answer to a prompt of IFEval."""

    id: str
    instructions: list[str]  # their names
    prompt: str


class ArcChoice(TypedDict):
    """A question of ARC-Easy, answered by likelihood."""

    id: str
    question: str
    loglik: list[float]  # of each choice, mean log p in nats a token
    chosen: int  # index of the likeliest choice
    answer: int  # index of the right one
    score: float  # 1 if these are the same, else 0


class Samples(TypedDict, total=False):
    """The parts of an evaluation; one that is not done yet is absent."""

    domain_answers: list[DomainAnswer]
    domain_choice: list[DomainChoice]
    ifeval: list[IFEvalAnswer]
    arc: list[ArcChoice]


class Evaluation(TypedDict):
    """eval/NAME.json."""

    model: str  # its folder
    fingerprint: str  # of its weights
    settings: dict[str, str | int]  # what the samples depend on besides the model
    engine: str | None  # its name; None before it was started
    seconds: dict[str, float]  # part of the evaluation, or "engine" for its start -> wall clock
    n: NotRequired[dict[str, int]]  # metric -> number of values; these two are there when all parts are
    metrics: NotRequired[dict[str, float]]  # metric -> mean
    samples: Samples


# Item id -> values: one per item, or one per instruction (up to three) of an IFEval prompt.
Values = dict[str, list[float]]


class Asked(TypedDict):
    """What the values of two models must agree in to be compared."""

    items: str  # digest
    max_tokens: int  # of an answer
    rows: int  # for training


class ItemValues(TypedDict):
    """values/base.json, values/SEED/METHOD.json: an evaluation without the texts of the data."""

    metrics: dict[str, float]
    n: dict[str, int]
    values: dict[str, Values]  # metric -> values
    asked: Asked


class Validation(TypedDict):
    """Scores for the choice of a grid point (`raft.real.validate`)."""

    domain: float
    general: float
    value: float  # by which the point is chosen
    loglik: float  # mean log p of the domain's right answers, in nats a token


class Passed(Validation):
    """The scores after some of a training."""

    epochs: float


class Point(Passed):
    """A point of the grid."""

    learning_rate: float


class Chosen(TypedDict):
    """chosen.json."""

    seed: int  # of the trainings
    grid: dict[str, list[Point]]  # method -> every point
    chosen: dict[str, Point]  # method -> the best of them


class Table(TypedDict):
    """The methods over the seeds (`raft.real.table`)."""

    methods: dict[str, dict[str, Spread]]  # method -> metric
    tests: dict[str, dict[str, Comparison]]  # raft_vs_METHOD -> metric
    n: dict[str, int]  # metric -> number of values of one seed
    model: str
    data: str
    commit: str | None  # None outside a git checkout
    command: str


class Study(Table):
    """medquad.json."""

    seeds: list[int]
    chosen: Chosen
    seconds: dict[str, float]  # stage -> wall clock
    at_once: int  # stages that ran side by side
    machine: Mapping[str, object]
    versions: dict[str, str]  # package -> version
