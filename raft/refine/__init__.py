"""Stage 1: rewrite each answer in the model's own words, filter by meaning, fuse with the reference (Eqs. 1-4)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raft.refine.pipeline import refine

__all__ = ["refine"]


def __getattr__(name: str) -> object:
    # On first use, for it imports torch: the report reads the floor's reasons without it.
    if name == "refine":
        from raft.refine.pipeline import refine

        return refine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
