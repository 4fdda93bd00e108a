"""Stage 1: rewrite each answer in the model's own words, filter by meaning, fuse with the reference, judge (Eqs. 1-4)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raft.refine.pipeline import refine

__all__ = ["refine"]


def __getattr__(name: str) -> Any:
    # On first use: the pipeline brings torch in, and the report only wants the reasons of the floor.
    if name == "refine":
        from raft.refine.pipeline import refine

        return refine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
