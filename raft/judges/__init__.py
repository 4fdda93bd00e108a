"""Judges: candidates in, scores with their reasons out, for refinement and evaluation alike.

`raft.judges.model` has the one that is a chat model; it imports the engines.
"""

from raft.judges.base import Candidate, Judge, Score, check_judges
from raft.judges.programs import Coverage, Faithfulness, Form, Program, default_judges
from raft.judges.reduce import majority, mean

__all__ = [
    "Candidate",
    "Coverage",
    "Faithfulness",
    "Form",
    "Judge",
    "Program",
    "Score",
    "check_judges",
    "default_judges",
    "majority",
    "mean",
]
