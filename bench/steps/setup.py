"""What is known of a trainer that is measured, ours or a peer's, and the settings that all of them get."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.steps.probes import Stopwatch, Tokens
from bench.steps.work import Work

LEARNING_RATE = 1e-6  # low, so that the lengths of rollouts stay what they were
SEED = 0


@dataclass
class Setup:
    """A trainer that is ready to train, and what is known of it."""

    trainer: Any
    model: Any
    watch: Stopwatch
    seconds: Callable[[], dict[str, float]]  # by part, of the step that was logged last
    objective: str  # the losses, what the teacher sees, how batches are made
    generation: str = "transformers"  # or vLLM, or none
    weights: str = "own"  # of the engine: the student's own, shared or copied
    tokens: Tokens = field(default_factory=Tokens)


def vllm_installed() -> bool:
    return importlib.util.find_spec("vllm") is not None


def shared_settings(work: Work, device: str, folder: Path, steps: int) -> dict[str, Any]:
    """Fields of transformers.TrainingArguments."""
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": work.batch,
        "learning_rate": LEARNING_RATE,
        "weight_decay": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
        "bf16": device == "cuda",
        # A GPU's models need it at these lengths; TRL turns it on by itself.
        "gradient_checkpointing": device == "cuda",
        "dataloader_pin_memory": False,
        "seed": SEED,
    }
