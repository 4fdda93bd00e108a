"""Self-distillation fine-tuning."""

from raft.methods.base import Method


class SDFT(Method):
    """Cross-entropy on the answers that the model itself has rewritten."""

    name = "sdft"
    citation = (
        "Yang et al., Self-Distillation Bridges Distribution Gap in Language Model Fine-Tuning, ACL 2024, "
        "arXiv 2402.13669"
    )
    target = "rewritten"
