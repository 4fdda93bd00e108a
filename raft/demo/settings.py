"""Settings of the demo.

`python -m studies.microworld.grid` chose the learning rates and epochs on the validation split of seed 0
(results/microworld_grid.json). Every seed uses them; no test item took part in the choice.
"""

from dataclasses import dataclass
from pathlib import Path

from raft.settings import RefineSettings

BASE_MODEL = Path(__file__).parent / "base"
DOMAIN = "open_science"
BATCH_SIZE = 16
WARMUP_STEPS = 10
MAX_MODEL_LEN = 256  # tokens; the longest prompt of the world has about 90
MAX_ANSWER = 48  # tokens; the longest answer has about 35
REFINE = RefineSettings(
    prompts="plain",
    rewrite_temperature=0.7,
    fuse_temperature=0.7,
    max_new_words=0.2,  # the answers have only about six words
    max_lost_words=1.0,  # the base model leaves out side remarks; its fused answers may lack them
    max_tokens=MAX_ANSWER,
    max_model_len=MAX_MODEL_LEN,
    batch_size=100,
)
METHODS = ("sft", "raft")
GRID_RATES = (1e-4, 2e-4, 5e-4)
GRID_EPOCHS = (4, 8, 16, 24, 32)


@dataclass(frozen=True)
class GridPoint:
    """One point of the grid."""

    learning_rate: float
    epochs: int


@dataclass(frozen=True)
class DemoSettings:
    """The defaults are the demo's; its tests use a part of the world."""

    sft: GridPoint = GridPoint(1e-4, 32)
    raft: GridPoint = GridPoint(2e-4, 8)
    validate_every: int = 2
    """Epochs between two points of the trade-off curve."""
    engine: str = "auto"
    """auto, vllm or hf, as `raft.engines.make_engine` takes it."""
    train_rows: int | None = None
    """Number of training rows, the first of the world; None: all."""
    every_item: int = 1
    """Only every n-th item of validation and test is used."""
