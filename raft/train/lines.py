"""The lines of a training's JSON Lines files, as they are written and read."""

from typing import TypedDict

# A word of Python's cannot be a field of a class. None: the method has no distillation.
_Weight = TypedDict("_Weight", {"lambda": float | None}, total=False)


class Figures(_Weight, total=False):
    """What a line of metrics.jsonl says of the optimizer steps since the line before.

    Losses and lambda are means over the steps, the norms of gradients root mean squares over those that measured them.
    The fields from `penalty` on are absent where they were not measured.
    """

    loss: float  # what was minimised
    loss_sft: float  # nats a token
    loss_kl: float | None  # nats a token times T^2; None where no step had a rollout that the teacher scored
    seconds: dict[str, float]  # part of a step (`raft.train.clock.PARTS`) -> seconds in it
    share: dict[str, float | None]  # the same as shares of the steps' time
    tokens: int  # of all packs
    tokens_per_second: float
    phase_tokens_per_second: dict[str, float]
    tflops: float  # 10^12 operations a second
    mfu: float | None  # share in [0, 1] of the device's peak; None where that is not known
    penalty: float  # the method's own term of the loss
    rollout_length: float  # tokens, mean
    rollout_truncated: float  # share of the rollouts that were cut
    teacher_mass: float  # share of the teacher's probability on its K tokens
    student_mass: float  # share of the student's probability on the same tokens
    teacher_entropy: float  # nats a token, over the K tokens
    student_entropy: float
    top1_agreement: float  # share of the tokens for which both models put the same one first
    gradient_sft: float  # of L_SFT, with respect to the hidden states
    gradient_kl: float | None  # of lambda * L_KL; None where no measured step had a rollout
    engine_gap: float  # nats a token (`raft.train.gap`)


class MetricsLine(Figures, total=False):
    """A line of metrics.jsonl: the figures, and what transformers logs."""

    step: int  # optimizer steps so far
    epoch: float
    learning_rate: float
    grad_norm: float  # L2, before clipping, of the last step


class RolloutLine(TypedDict):
    """A line of rollouts.jsonl."""

    step: int  # the optimizer step that it trained
    id: str  # of the row
    question: str
    answer: str  # what was trained, as text
    rollout: str  # what the student answered
    finish_reason: str  # "stop", or "length" for one that was cut
    teacher_prompt: str  # what the teacher read before the rollout
    loss_kl: float  # nats a token times T^2


class WarningLine(TypedDict):
    """A line of warnings.jsonl."""

    step: int
    name: str  # of the warning; each is given once
    text: str


class ValidationLine(TypedDict, total=False):
    """A line of validation.jsonl: the scores, in [0, 1], of the suites that the items belong to."""

    step: int  # 0: the untrained model
    epoch: float
    domain: float
    general: float
    format: float
