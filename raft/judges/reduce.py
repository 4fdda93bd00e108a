"""From the scores of several judges of one candidate to one result. A score without a value counts as a reject."""

import math
from collections.abc import Sequence

from raft.judges.base import Score


def mean(scores: Sequence[Score]) -> float:
    """Mean value in [0, 1], a missing value as 0; 0 without any score."""
    return math.fsum(score.value or 0.0 for score in scores) / max(len(scores), 1)


def majority(scores: Sequence[Score], least: float = 0.5) -> bool:
    """Whether more than half of the judges give `least` or more."""
    return 2 * sum(score.value is not None and score.value >= least for score in scores) > len(scores)
