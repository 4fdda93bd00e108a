"""What `raft real` runs with."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RealSettings:
    rows: int = 300
    """Training rows."""
    validation: int = 75
    """Of these, asked otherwise, to choose the grid's point by; the test has the others."""
    arc: int = 300
    ifeval: int = 100
    """Items of the general tests."""
    arc_validation: int = 150
    """Other questions, to choose the grid's point by."""
    data_seed: int = 0
    """Draws rows and items, the same for every seed: seeds differ in what is random in refinement, training and
    rollouts."""
    methods: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"sft": {"method": "sft"}, "raft": {"method": "raft"}}
    )
    """Name -> its own fields of RAFTConfig."""
    rates: tuple[float, ...] = (1e-4, 3e-4)
    epochs: tuple[float, ...] = (1, 2)
    """The grid of each method: every rate for the first number of epochs, the better one for the others too, which are
    multiples of the first. The rate is constant, so a longer training goes on where the shorter one ended."""
    train: dict[str, Any] = field(
        default_factory=lambda: {
            "per_device_train_batch_size": 8,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 5,
            "rollout_max_tokens": 64,
            "max_length": 1024,
            "max_tokens_per_micro_batch": 1024,
            "report_to": [],
        }
    )
    """Fields of RAFTConfig, the same for every method."""
    refine: dict[str, Any] = field(
        default_factory=lambda: {"max_tokens": 256, "max_model_len": 2048, "batch_size": 150}
    )
    """Settings of the refinement."""
    max_tokens: int = 160
    """Tokens of an answer in the evaluation at most."""
    engine: str = "auto"
    """auto, vllm or hf: generates in refinement, training and evaluation."""


QUICK = RealSettings(
    rows=24,
    validation=8,
    arc=4,
    arc_validation=4,
    ifeval=2,
    rates=(1e-5,),
    epochs=(1,),
    max_tokens=8,
    train={**RealSettings().train, "rollout_max_tokens": 8, "per_device_train_batch_size": 4},
    refine={"max_tokens": 64, "max_model_len": 1024, "rounds": 1},
)
"""To see that it runs; its figures mean nothing."""
