"""Tiny training set-ups that the trainer's tests share."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raft.engines.base import Completion, Sampling
from raft.engines.hf import HFEngine
from raft.train.config import RAFTConfig
from raft.train.trainer import RAFTTrainer
from tests.tiny import build

_folder = tempfile.TemporaryDirectory()


@functools.cache
def checkpoint(family: str = "qwen3", **overrides: Any) -> Path:
    return build(family, Path(_folder.name, f"{family}-{len(list(Path(_folder.name).iterdir()))}"), **overrides)


def load(family: str = "qwen3", dtype: torch.dtype = torch.float32, **overrides: Any) -> tuple[Any, Any]:
    """A fresh copy of a tiny model, and its tokenizer."""
    path = checkpoint(family, **overrides)
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype), AutoTokenizer.from_pretrained(path)


def rows(count: int = 8) -> list[dict[str, str]]:
    """Questions with answers of different lengths, fused ones beside them."""
    return [
        {
            "id": f"r{i}",
            "question": f"what is the colour of stone {i}?",
            "answer": f"stone {i} is " + "very " * (i % 3) + "grey",
            "fused_answer": f"the stone with number {i} is grey" + " indeed" * (i % 2),
        }
        for i in range(count)
    ]


def config(folder: str | Path, **overrides: Any) -> RAFTConfig:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        "per_device_train_batch_size": 2,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "top_k": 32,
        "max_length": 192,
        "rollout_max_tokens": 10,
    }
    return RAFTConfig(**(settings | overrides))


class Recorder(HFEngine):
    """An engine that keeps what it was asked and what it gave; `edit` may replace completions."""

    def __init__(self, model: Any, tokenizer: Any, edit: Any = None):
        super().__init__(model, tokenizer, max_model_len=192)
        self.calls: list[tuple[list[list[int]], Sampling, list[Completion]]] = []
        self.refreshed, self.closed = 0, False
        self.edit = edit or (lambda completions: completions)

    def generate(self, prompts: Any, sampling: Sampling) -> list[Completion]:
        completions = self.edit(super().generate(prompts, sampling))
        self.calls.append(([list(p) for p in prompts], sampling, completions))
        return completions

    def refresh(self) -> None:
        self.refreshed += 1

    def close(self) -> None:
        self.closed = True


def trainer(
    folder: str | Path, family: str = "qwen3", data: Any = None, dtype: Any = torch.float32, **overrides: Any
) -> RAFTTrainer:
    """A trainer of a tiny model with a recording engine. overrides: settings, engine_edit, teacher and callbacks."""
    edit, teacher, callbacks = (overrides.pop(name, None) for name in ("engine_edit", "teacher", "callbacks"))
    eval_dataset = overrides.pop("eval_dataset", None)
    model, tokenizer = load(family, dtype)
    return RAFTTrainer(
        model,
        config(folder, **overrides),
        rows() if data is None else data,
        processing_class=tokenizer,
        engine=Recorder(model, tokenizer, edit),
        teacher=teacher,
        callbacks=callbacks,
        eval_dataset=eval_dataset,
    )


def lines(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def exact(path: str | Path) -> list[dict[str, Any]]:
    """Metrics without what is measured in time."""
    timed = ("seconds", "share", "tokens_per_second", "phase_tokens_per_second", "tflops", "mfu")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines(path)]
