"""Evaluation of a model before and after training: checks, suites, weight distance."""

from typing import TYPE_CHECKING

from raft.evaluate.checks import score
from raft.evaluate.suites import evaluate

if TYPE_CHECKING:
    from raft.evaluate.evaluation import evaluate_run
    from raft.merging.distance import weight_distance

__all__ = ["evaluate", "evaluate_run", "score", "weight_distance"]


def __getattr__(name: str) -> object:
    """Load the parts that need torch on first use: the report imports this package and does not need torch."""
    if name == "weight_distance":
        from raft.merging.distance import weight_distance

        return weight_distance
    if name == "evaluate_run":
        from raft.evaluate.evaluation import evaluate_run

        return evaluate_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
