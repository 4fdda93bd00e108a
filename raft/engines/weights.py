"""Weights that an engine need not follow."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OwnWeights:
    """The engine generates with the model itself (mode "shared"), or with weights read once from a folder ("disk")."""

    mode: str

    def refresh(self) -> None:
        """Nothing to do."""
