"""Settings of `raft real`."""

from dataclasses import dataclass, field
from typing import Any

Fields = dict[str, Any]
"""Name of a setting -> its value."""


@dataclass(frozen=True)
class RealSettings:
    rows: int = 300
    """Training rows."""
    validation: int = 75
    """Number of these that are rephrased for the choice of the grid point; the others are rephrased for the test."""
    arc: int = 300
    ifeval: int = 100
    """Items of the general tests, ARC-Easy and IFEval."""
    arc_validation: int = 150
    """Further ARC-Easy questions, for the choice of the grid point."""
    data_seed: int = 0
    """Draws rows and items, the same for every seed. Seeds differ in the random draws of refinement, training and
    rollouts."""
    methods: dict[str, Fields] = field(default_factory=lambda: {"sft": {"method": "sft"}, "raft": {"method": "raft"}})
    """Method's name -> its own fields of RAFTConfig."""
    rates: tuple[float, ...] = (1e-4, 3e-4)
    epochs: tuple[float, ...] = (1, 2)
    """The grid of each method: every rate with the first number of epochs, then the best rate with the other numbers,
    multiples of the first. The rate is constant, so a longer training continues the shorter one."""
    train: Fields = field(
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
    refine: Fields = field(default_factory=lambda: {"max_tokens": 256, "max_model_len": 2048, "batch_size": 150})
    """Settings of the refinement."""
    max_tokens: int = 160
    """Maximum tokens of an answer in the evaluation."""
    engine: str = "auto"
    """auto, vllm or hf: the engine of refinement, training and evaluation."""


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
"""Only to check that everything runs; the scores mean nothing."""
