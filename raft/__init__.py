"""RAFT: data refinement and adaptive distillation for domain fine-tuning with little forgetting (arXiv 2606.00147)."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["RAFTConfig", "RAFTTrainer"]

if TYPE_CHECKING:
    from raft.train.config import RAFTConfig
    from raft.train.trainer import RAFTTrainer


def __getattr__(name: str) -> object:
    """Imports the trainer on first use, so that `raft --version` need not import torch."""
    if name == "RAFTConfig":
        from raft.train.config import RAFTConfig

        return RAFTConfig
    if name == "RAFTTrainer":
        from raft.train.trainer import RAFTTrainer

        return RAFTTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
