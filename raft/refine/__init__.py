"""Stage 1: rewrite each answer in the model's own words, filter by meaning, fuse with the reference, judge (Eqs. 1-4)."""

from raft.refine.pipeline import refine

__all__ = ["refine"]
