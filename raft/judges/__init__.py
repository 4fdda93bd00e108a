"""Judges: candidates in, scores with their reasons out, for refinement and evaluation alike."""

from raft.judges.base import Candidate, Judge, Score, check_judges
from raft.judges.model import ModelJudge
from raft.judges.programs import Coverage, Faithfulness, Form, Program, default_judges
from raft.judges.reduce import majority, mean

__all__ = [
    "Candidate",
    "Coverage",
    "Faithfulness",
    "Form",
    "Judge",
    "ModelJudge",
    "Program",
    "Score",
    "check_judges",
    "default_judges",
    "majority",
    "mean",
]
