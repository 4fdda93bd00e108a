"""Supervised fine-tuning alone, ours and TRL's, on the same rows: no rollouts, no teacher, cross-entropy of the answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.probes import Stopwatch, Tokens, around
from bench.step_setup import SEED, Setup, shared_settings
from bench.work import Work, make_model, make_rows, make_tokenizer


def make_ours(work: Work, device: str, folder: Path, steps: int) -> Setup:
    from raft.runs import read_jsonl
    from raft.train.config import RAFTConfig
    from raft.train.trainer import RAFTTrainer

    model, tokenizer = make_model(work, device, SEED), make_tokenizer(work)
    args = RAFTConfig(**shared_settings(work, device, folder, steps), method="sft", max_length=work.max_length)
    trainer = RAFTTrainer(model, args, make_rows(work, SEED), processing_class=tokenizer)
    tokens = Tokens()
    tokens.watch(trainer.student.inner.get_decoder(), "student")
    watch = Stopwatch(device)
    return Setup(
        trainer,
        model,
        tokens,
        watch,
        lambda: read_jsonl(folder / "metrics.jsonl")[-1]["seconds"],
        "none",
        "own",
        "CE on answers; packed",
    )


def make_trl(work: Work, device: str, folder: Path, steps: int) -> Setup:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from bench.trl_steps import Optimizer

    model, tokenizer = make_model(work, device, SEED), make_tokenizer(work)
    turns = [
        {
            "prompt": [{"role": "user", "content": row["question"]}],
            "completion": [{"role": "assistant", "content": row["answer"]}],
        }
        for row in make_rows(work, SEED)
    ]
    args = SFTConfig(**shared_settings(work, device, folder, steps), max_length=work.max_length)
    trainer = SFTTrainer(model, args, train_dataset=Dataset.from_list(turns), processing_class=tokenizer)
    tokens, watch = Tokens(), Stopwatch(device)
    tokens.watch(model.get_decoder(), "student")
    last: dict[str, float] = {}

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with watch.part("forward_backward"):
                return method(*args, **kwargs)

        return run

    around(trainer, "training_step", timed)
    trainer.add_callback(Optimizer(watch, last))
    return Setup(trainer, model, tokens, watch, lambda: last, "none", "own", "CE on answers; padded")
