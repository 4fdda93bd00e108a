"""Writes the golden loss curve anew: python -m tests.golden.regenerate"""

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.golden.training import exact, trainer

SETTINGS: dict[str, Any] = {
    "family": "qwen3",
    "num_train_epochs": 2,
    "gradient_accumulation_steps": 2,
    "steps_per_refresh": 2,
    "max_grad_norm": 1.0,
    "teacher_prompt": "paper",
}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        trainer(folder, **SETTINGS).train()
        names = ("step", "loss", "loss_sft", "loss_kl", "lambda", "grad_norm")
        curve = [{name: line[name] for name in names} for line in exact(Path(folder, "metrics.jsonl"))]
    Path(__file__).with_name("loss_curve.json").write_text(
        json.dumps({"settings": SETTINGS, "curve": curve}, indent=1) + "\n"
    )
