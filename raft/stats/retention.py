"""Retention: how much of the base model's score is left (the paper's Table 4)."""

from collections.abc import Mapping


def retention(scores: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
    """score / base score of each suite that both have; a suite on which the base scores 0 has no retention."""
    return {suite: value / base[suite] for suite, value in scores.items() if base.get(suite)}
