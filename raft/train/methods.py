"""The methods as presets of one trainer: which answer is trained on, what the teacher sees, and what follows training.

Every difference between two methods is a field of `Method`, and each but `distills` and `prunes` can be set by itself
(`target`, `teacher_context`, `balance` of RAFTConfig), so that an ablation is a line of settings.
"""

from dataclasses import dataclass
from typing import Literal

from raft.errors import ConfigError

Target = Literal["fused", "raw", "rewritten"]
TeacherContext = Literal["answer", "none"]

BLIND_LAMBDA_MAX = 10.0
"""Upper bound of lambda where the teacher does not see the answer and the settings name no bound.

Such a teacher reads what the student reads, and it is the student as it was at the start: L_KL begins at 0, Eq. 12
divides by it, and lambda runs away (into the thousands on the micro-world), so that nothing but staying the same is
learned. The bound is ours: above the 3 to 4 at which the ratio of both losses settles in the paper (Fig. 2a), and far
below such a runaway."""


@dataclass(frozen=True)
class Method:
    """What sets one method apart from the others."""

    citation: str
    target: Target
    """The answer that the student is trained on, and that the teacher is shown."""
    distills: bool = False
    """Whether the student also learns from the teacher on its own rollouts (Eqs. 6-10)."""
    teacher_context: TeacherContext = "answer"
    """What the teacher reads beside the question: the answer (Eq. 7), or nothing."""
    prunes: bool = False
    """Whether the task vector is pruned once training has ended (`raft.train.fapm`)."""


METHODS: dict[str, Method] = {
    "raft": Method(
        "RAFT: Data Refinement and Adaptive Distillation for Domain Fine-Tuning with Alleviated Forgetting, 2026, "
        "arXiv 2606.00147",
        target="fused",
        distills=True,
    ),
    "sft": Method(
        "Supervised fine-tuning: cross-entropy on the reference answers, the baseline of all the others",
        target="raw",
    ),
    "sdft": Method(
        "Yang et al., Self-Distillation Bridges Distribution Gap in Language Model Fine-Tuning, ACL 2024, "
        "arXiv 2402.13669",
        target="rewritten",
    ),
    "on_policy": Method(
        "Agarwal et al., On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes, ICLR 2024, "
        "arXiv 2306.13649",
        target="raw",
        distills=True,
        teacher_context="none",
    ),
    "fapm": Method(
        "Huang, Cheng, Wang, Mitigating Catastrophic Forgetting in Large Language Models with Forgetting-aware "
        "Pruning, EMNLP 2025, arXiv 2509.08255",
        target="raw",
        prunes=True,
    ),
}


def get_method(name: str) -> Method:
    if name not in METHODS:
        raise ConfigError(f"method: expected one of {', '.join(METHODS)}, found {name!r}")
    return METHODS[name]
