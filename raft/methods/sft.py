"""Supervised fine-tuning."""

from raft.methods.base import Method


class SFT(Method):
    """Cross-entropy on the reference answers."""

    name = "sft"
    citation = "Supervised fine-tuning: cross-entropy on the reference answers, the baseline of all the others"
    target = "raw"
