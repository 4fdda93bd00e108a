"""On-policy distillation from a teacher that does not read the answer."""

from raft.methods.base import Method


class OnPolicy(Method):
    """Cross-entropy on the reference answers, and distillation from a teacher that reads only the question."""

    name = "on_policy"
    citation = (
        "Agarwal et al., On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes, ICLR 2024, "
        "arXiv 2306.13649"
    )
    target = "raw"
    distills = True
    teacher_context = "none"
