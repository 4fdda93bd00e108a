"""Whose training step is measured, by name.

ours-shared, ours-copied    RAFTTrainer with vLLM, which shares or copies the student's weights
ours-hf                     RAFTTrainer with transformers' own generation
  ...-unpacked              padded batches, answers and rollouts in a forward each; all else equal
  ...-r4, ...-r16           one call of the engine feeds 4 or 16 optimizer steps
trl-distillation            TRL's DistillationTrainer: rollouts and a divergence over the full vocabulary
trl-sdft                    TRL's SDFTTrainer: rollouts, a teacher that sees the answer, top-K on the student's ids
  ...-ce                    with the cross-entropy of the answers added, which our step has and TRL's has not
"""

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.probes import Stopwatch, Tokens, around
from bench.providers import Unavailable
from bench.work import Work, make_model, make_rows, make_tokenizer

OURS = re.compile(r"ours-(shared|copied|hf)(-unpacked)?(?:-r(\d+))?")
TRL = re.compile(r"trl-(distillation|sdft)(-ce)?")
LEARNING_RATE = 1e-6  # low, so that the lengths of rollouts stay what they were
SEED = 0


@dataclass
class Setup:
    """A trainer that is ready to train, and what is known of it."""

    trainer: Any
    model: Any
    tokens: Tokens
    watch: Stopwatch
    seconds: Callable[[], dict[str, float]]  # by part, of the step that was logged last
    generation: str
    weights: str
    objective: str


def vllm_installed() -> bool:
    return importlib.util.find_spec("vllm") is not None


def defaults(quick: bool) -> list[str]:
    """What a run without --providers measures; --quick keeps to what starts in seconds."""
    if quick:
        return ["ours-hf", "ours-hf-unpacked", "trl-distillation", "trl-sdft"]
    main = "ours-shared" if vllm_installed() else "ours-hf"
    ours = [main, f"{main}-unpacked", f"{main}-r4", f"{main}-r16", "ours-shared", "ours-copied", "ours-hf"]
    peers = ["trl-distillation", "trl-distillation-ce", "trl-sdft", "trl-sdft-ce"]
    return list(dict.fromkeys([*ours, "ours-hf-unpacked", *peers]))


def check(name: str) -> str | None:
    """Why a provider cannot run here; None if it may. ValueError for a name that there is not."""
    ours, trl = OURS.fullmatch(name), TRL.fullmatch(name)
    if not ours and not trl:
        raise ValueError(f"{name} unknown; there are {(__doc__ or '').partition(chr(10) * 2)[2]}")
    needed = "trl" if trl else "vllm" if ours and ours[1] != "hf" else None
    return f"{needed} is not installed" if needed and importlib.util.find_spec(needed) is None else None


def steps_per_refresh(name: str) -> int:
    found = OURS.fullmatch(name)
    return int(found[3] or 1) if found else 1


def make(name: str, work: Work, device: str, folder: Path, steps: int) -> Setup:
    """Builds model, engine and trainer; `folder` takes their files."""
    if ours := OURS.fullmatch(name):
        return _ours(ours[1], bool(ours[2]), int(ours[3] or 1), work, device, folder, steps)
    found = TRL.fullmatch(name)
    if found is None:
        raise Unavailable(f"{name} is no provider")
    from bench.trl_steps import make_trl

    return make_trl(found[1], bool(found[2]), work, device, folder, steps)


def shared_settings(work: Work, device: str, folder: Path, steps: int) -> dict[str, Any]:
    """Of transformers.TrainingArguments, the same for all."""
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


def _ours(engine_name: str, unpacked: bool, every: int, work: Work, device: str, folder: Path, steps: int) -> Setup:
    from bench.unpacked import unpack
    from raft.runs import read_jsonl
    from raft.train.config import RAFTConfig
    from raft.train.trainer import RAFTTrainer

    model, tokenizer = make_model(work, device, SEED), make_tokenizer(work)
    engine = make_engine(engine_name, model, tokenizer, work, work.batch * every)
    args = RAFTConfig(
        **shared_settings(work, device, folder, steps),
        top_k=work.k,
        max_length=work.max_length,
        teacher_max_length=work.teacher_max_length,
        rollout_max_tokens=work.rollout_most,
        steps_per_refresh=every,
    )
    trainer = RAFTTrainer(model, args, make_rows(work, SEED), processing_class=tokenizer, engine=engine)
    if unpacked:
        unpack(trainer, work.batch)
    tokens = Tokens()
    tokens.watch(trainer.student.inner.get_decoder(), "student")
    teacher = trainer.teacher
    assert teacher is not None
    tokens.watch(teacher.model.inner.get_decoder(), "teacher")
    count_engine(engine, model, tokens)
    batch = "padded, answers and rollouts apart" if unpacked else "packed, answers and rollouts together"
    return Setup(
        trainer,
        model,
        tokens,
        Stopwatch(device),
        # The last line of what every run of this trainer writes.
        lambda: read_jsonl(folder / "metrics.jsonl")[-1]["seconds"],
        "transformers" if engine_name == "hf" else "vLLM",
        "own" if engine_name == "hf" else engine.weights.mode,
        f"CE on answers + KL on the teacher's top-{work.k}, teacher sees the answer; {batch}",
    )


def make_engine(name: str, model: Any, tokenizer: Any, work: Work, requests: int) -> Any:
    """hf, shared or copied; `requests` of one call at most."""
    from raft.engines import HFEngine, VLLMEngine

    if name == "hf":
        return HFEngine(model, tokenizer, max_model_len=work.max_length)
    return VLLMEngine(
        model,
        tokenizer,
        max_model_len=work.max_length,
        weights=name,
        max_num_seqs=min(requests, 128),  # the engine's own default; a smaller batch needs no larger cache
        release_on_gpu=model.device.type == "cuda",  # as the trainer has it; without effect on a CPU
    )


def count_engine(engine: Any, model: Any, tokens: Tokens) -> None:
    def counted(generate: Callable[..., Any]) -> Callable[..., Any]:
        def run(prompts: Any, sampling: Any) -> Any:
            completions = generate(prompts, sampling)
            tokens.drawn(prompts, [completion.token_ids for completion in completions])
            return completions

        return run

    around(engine, "generate", counted)
    watch_generate(model, tokens)


def watch_generate(model: Any, tokens: Tokens) -> None:
    """Tells what the model's own `generate` feeds from what the training does."""

    def flagged(generate: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with tokens.generating():
                return generate(*args, **kwargs)

        return run

    around(model, "generate", flagged)
