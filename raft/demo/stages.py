"""The stages of the demo. A stage is skipped if the run folder already has its result."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from raft.demo.settings import (
    BASE_MODEL,
    BATCH_SIZE,
    MAX_ANSWER,
    MAX_MODEL_LEN,
    REFINE,
    WARMUP_STEPS,
    DemoSettings,
    GridPoint,
)
from raft.demo.world import World, draw_world
from raft.evaluate.suites import Item
from raft.progress import say
from raft.refine.store import write_lines
from raft.runs import Run, read_json, read_jsonl, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from raft.engines import Engine, Sampling
    from raft.evaluate.results import Evaluation, Result
    from raft.refine.lines import FusedRow

T = TypeVar("T")


def train_settings(method: str, choice: GridPoint, seed: int) -> dict[str, Any]:
    """Fields of RAFTConfig."""
    return {
        "method": method,
        "learning_rate": choice.learning_rate,
        "num_train_epochs": choice.epochs,
        "per_device_train_batch_size": BATCH_SIZE,
        # With a constant rate the first epochs of a long training equal a short training, so that one training gives
        # the grid's points of one learning rate.
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": WARMUP_STEPS,
        "rollout_max_tokens": MAX_ANSWER,
        "teacher_prompt": "paper",  # the wording that the base model was trained on
        "max_length": MAX_MODEL_LEN,
        "save_total_limit": 1,
        "report_to": [],
        "seed": seed,
    }


class Stages:
    """All stages share one model, one engine on its weights and one world, so that the engine starts once.

    The engine reads the weights that are trained. Before each method the base model's weights are copied back in place.
    """

    def __init__(self, run: Run, domain: str, seed: int, settings: DemoSettings):
        self.run, self.domain, self.seed, self.settings = run, domain, seed, settings

    @cached_property
    def world(self) -> World:
        """Drawn from the seed, and written to data/ for readers of the run folder."""
        world = draw_world(self.domain, self.seed).part(self.settings.train_rows, self.settings.every_item)
        for name in ("train", "validation", "test"):
            write_lines(self.run.path / "data" / f"{name}.jsonl", getattr(world, name))
        return world

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        from raft.models import load_tokenizer

        return load_tokenizer(BASE_MODEL)

    @cached_property
    def base(self) -> "PreTrainedModel":
        """The base model in float32, never trained."""
        import torch
        from transformers.utils import logging as transformers_logging

        from raft.models import load_model

        # The phases have their own progress bars; transformers' many short ones would hide them.
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        return load_model(BASE_MODEL, dtype=torch.float32).eval()

    @cached_property
    def model(self) -> "PreTrainedModel":
        import copy

        return copy.deepcopy(self.base)

    @cached_property
    def engine(self) -> "Engine":
        from raft.engines import make_engine

        engine = make_engine(self.settings.engine, self.model, self.tokenizer, max_model_len=MAX_MODEL_LEN)
        say(f"      engine: {engine.name}, weights {engine.weights.mode}")
        return engine

    def load_weights(self, source: "PreTrainedModel") -> None:
        """Copy the weights of the model `source` into this one in place, so that the engine sees them."""
        import torch

        with torch.no_grad():
            for parameter, other in zip(self.model.parameters(), source.parameters(), strict=True):
                parameter.copy_(other)
        self.engine.refresh()

    def refine(self) -> "list[FusedRow]":
        """Stage 1 with the base model as rewriter and fusion model."""
        fused = self.run.refine_dir / "fused.jsonl"
        if not fused.exists():
            from raft.models.fingerprint import fingerprint
            from raft.refine import refine
            from raft.refine.context import Models
            from raft.rows import normalize_rows

            self.load_weights(self.base)
            models = Models.local(fingerprint(BASE_MODEL), self.engine, REFINE)
            refine(normalize_rows(self.world.train), models, self.run, REFINE)
        return read_jsonl(fused)

    def evaluate(self, name: str, model_path: Path) -> "Result":
        """Test scores of the weights at `model_path`, by greedy answers; kept with every sample in eval/NAME.json."""
        path = self.run.eval_dir / f"{name}.json"
        if not path.exists():
            import torch

            from raft.models import load_model

            self.load_weights(load_model(model_path, dtype=torch.float32))
            write_json(path, {"model": str(model_path), **self.score(self.world.test)})
        result: Result = read_json(path)
        return result

    def score(self, items: Sequence[Item]) -> "Evaluation":
        """Scores of the engine's current weights, by greedy answers."""
        from raft.evaluate import evaluate

        return evaluate(items, self.engine, self._greedy(), progress=True)

    def train(self, method: str, choice: GridPoint, run: Run, **switches: Any) -> None:
        """Train one method into `run` (a folder with train/ and model/), with a validation every few epochs.

        SFT gets the raw answers, RAFT the fused answers to the same questions. switches: fields of RAFTConfig.
        """
        if run.model_dir.exists():
            return
        from raft.train.checkpoint import last_checkpoint
        from raft.train.config import RAFTConfig
        from raft.train.interrupt import StopAtStepEnd
        from raft.train.trainer import RAFTTrainer
        from raft.train.training import save
        from raft.train.validation import ValidationCallback

        rows: Sequence[Mapping[str, object]] = self.world.train if method == "sft" else self.refine()
        self.load_weights(self.base)
        settings = {**train_settings(method, choice, self.seed), **switches}
        args = RAFTConfig(output_dir=str(run.train_dir), disable_tqdm=False, **settings)
        trainer = RAFTTrainer(
            model=self.model,
            args=args,
            train_dataset=rows,
            processing_class=self.tokenizer,
            engine=self.engine,
            teacher=self.base,
        )
        validation = ValidationCallback(
            self.world.validation,
            every_epochs=self.settings.validate_every,
            writer_path=run.train_dir / "validation.jsonl",
            evaluate_fn=self._validate,
            engine=self.engine,
            sampling=self._greedy(),
        )
        trainer.add_callback(validation)
        with StopAtStepEnd() as stop:
            trainer.add_callback(stop)
            trainer.train(resume_from_checkpoint=last_checkpoint(run.train_dir))
        save(trainer, run.model_dir)

    def _greedy(self) -> "Sampling":
        from raft.engines import Sampling

        return Sampling(temperature=0.0, max_tokens=MAX_ANSWER, seed=self.seed)

    def _validate(self, items: Sequence[Item], engine: "Engine", sampling: "Sampling") -> "Evaluation":
        from raft.evaluate import evaluate

        result = evaluate(items, engine, sampling, progress=True)
        say("      validation: " + ", ".join(f"{suite} {score:.2f}" for suite, score in result["scores"].items()))
        return result


class StageTimes:
    """Seconds of each stage, kept in the run folder so that a resumed run adds to those of the first part."""

    def __init__(self, path: Path):
        self.path = path
        self.seconds: dict[str, float] = read_json(path) if path.exists() else {}
        self._lock = threading.Lock()  # stages may run in parallel

    def time(self, label: str, name: str, work: Callable[[], T]) -> T:
        say(f"{label} ...")
        start = time.monotonic()
        try:
            return work()
        finally:
            self.add(name, time.monotonic() - start)

    def add(self, name: str, seconds: float) -> None:
        with self._lock:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 2)
            write_json(self.path, self.seconds)
