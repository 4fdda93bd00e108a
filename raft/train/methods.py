"""The methods as presets of one trainer: which answer is trained on, and what the teacher sees."""

from dataclasses import dataclass
from typing import Literal

from raft.errors import ConfigError

Target = Literal["fused", "raw", "rewritten"]


@dataclass(frozen=True)
class Method:
    """What sets one method apart from the others."""

    target: Target
    """The answer that the student is trained on, and that the teacher is shown."""
    distills: bool
    """Whether the student also learns from the teacher on its own rollouts (Eqs. 6-10)."""
    reference: bool = True
    """Whether the teacher sees the answer (Eq. 7). Without it teacher and student start out identical."""
    lambda_max: float | None = None
    """Upper bound of lambda where the settings name none. L_KL starts at 0 when the teacher sees no answer, and Eq. 12 runs away."""


METHODS: dict[str, Method] = {
    "raft": Method(target="fused", distills=True),
    "sft": Method(target="raw", distills=False),
    "sdft": Method(target="rewritten", distills=False),
    "on_policy": Method(target="raw", distills=True, reference=False, lambda_max=10.0),
}


def get_method(name: str) -> Method:
    if name not in METHODS:
        raise ConfigError(f"method: expected one of {', '.join(METHODS)}, found {name!r}")
    return METHODS[name]
