"""RAFT, the method of the paper."""

from raft.methods.base import Method


class RAFT(Method):
    """Cross-entropy on the fused answers, and distillation from a teacher that reads them (Eqs. 5-12)."""

    name = "raft"
    citation = (
        "RAFT: Data Refinement and Adaptive Distillation for Domain Fine-Tuning with Alleviated Forgetting, 2026, "
        "arXiv 2606.00147"
    )
    target = "fused"
    distills = True
