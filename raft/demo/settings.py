"""What the demo runs with. The learning rates and epochs are what `python -m studies.microworld.grid` chose on the validation split
of seed 0 (results/microworld_grid.json); every seed uses them, and no test item was looked at for them."""

from dataclasses import dataclass
from pathlib import Path

from raft.settings import RefineSettings

BASE_MODEL = Path(__file__).parent / "base"
DOMAIN = "open_science"
BATCH_SIZE = 16
WARMUP_STEPS = 10
MAX_MODEL_LEN = 256  # tokens; the world's longest prompt has about 90
MAX_ANSWER = 48  # tokens; its longest answer has about 35
REFINE = RefineSettings(
    prompts="plain",
    rewrite_temperature=0.7,
    fuse_temperature=0.7,
    max_new_words=0.2,  # its answers have six words or so
    max_lost_words=1.0,  # its base model drops side remarks, which is what a fused answer is for there
    max_tokens=MAX_ANSWER,
    max_model_len=MAX_MODEL_LEN,
    batch_size=100,
)
METHODS = ("sft", "raft")
GRID_RATES = (1e-4, 2e-4, 5e-4)
GRID_EPOCHS = (4, 8, 16, 24, 32)


@dataclass(frozen=True)
class Choice:
    """One point of the grid."""

    learning_rate: float
    epochs: int


@dataclass(frozen=True)
class DemoSettings:
    """What a demo does with its world. The tests run it on a part of the world; the defaults are the demo."""

    sft: Choice = Choice(1e-4, 32)
    raft: Choice = Choice(2e-4, 8)
    validate_every: int = 2
    """Epochs between two points of the trade-off curve."""
    engine: str = "auto"
    """auto, vllm or hf, as `raft.engines.make_engine` takes it."""
    train_rows: int | None = None
    """Train on the first rows only."""
    every_item: int = 1
    """Ask only every n-th item of validation and test."""
