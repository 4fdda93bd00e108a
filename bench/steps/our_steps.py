"""Our trainer: with each engine, packed or padded; and supervised fine-tuning alone."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from bench.steps.probes import Stopwatch, observe, within
from bench.steps.setup import SEED, Setup, shared_settings
from bench.steps.work import Work, make_model, make_rows, make_tokenizer

NAME = re.compile(r"ours-(shared|copied|hf)(-unpacked)?(?:-r(\d+))?(?:-p(\d+))?")


class Variant(NamedTuple):
    """Of our trainer; bench/steps/providers.py explains the names."""

    engine: str  # as of `make_engine`
    unpacked: bool = False
    every: int = 1  # optimizer steps that one call of the engine feeds
    budget: int | None = None  # tokens of a pack at most

    @classmethod
    def of(cls, name: str) -> "Variant | None":
        found = NAME.fullmatch(name)
        if found is None:
            return None
        return cls(found[1], bool(found[2]), int(found[3] or 1), int(found[4]) if found[4] else None)


def make_ours(variant: Variant, work: Work, device: str, folder: Path, steps: int) -> Setup:
    """RAFT: rollouts, a teacher that sees the answer, and both losses."""
    from bench.steps.unpacked import unpack

    model, tokenizer = make_model(work, device, SEED), make_tokenizer(work)
    engine = make_engine(variant.engine, model, tokenizer, work, work.batch * variant.every)
    batch = "padded, answers and rollouts apart" if variant.unpacked else "packed, answers and rollouts together"
    batch += f", at most {variant.budget} tokens at once" if variant.budget else ""
    objective = f"CE on answers + KL on the teacher's top-{work.k}, teacher sees the answer; {batch}"
    settings = shared_settings(work, device, folder, steps) | {
        "top_k": work.k,
        "teacher_max_length": work.teacher_max_length,
        "rollout_max_tokens": work.rollout_most,
        "steps_per_refresh": variant.every,
        "max_tokens_per_micro_batch": variant.budget,
    }
    setup = _setup(model, tokenizer, work, settings, objective, engine)
    if variant.engine != "hf":
        setup.generation, setup.weights = "vLLM", engine.weights.mode
    if variant.unpacked:
        unpack(setup.trainer, work.batch)
    tokens, teacher = setup.tokens, setup.trainer.teacher
    tokens.watch(setup.trainer.student.inner.get_decoder(), "student")
    tokens.watch(teacher.model.inner.get_decoder(), "teacher")
    observe(engine, "generate", lambda prompts, found: tokens.drawn(prompts, [c.token_ids for c in found]))
    within(model, "generate", tokens.generating)
    return setup


def make_sft(work: Work, device: str, folder: Path, steps: int) -> Setup:
    """Neither rollouts nor a teacher."""
    model, tokenizer = make_model(work, device, SEED), make_tokenizer(work)
    settings = shared_settings(work, device, folder, steps) | {"method": "sft"}
    setup = _setup(model, tokenizer, work, settings, "CE on answers; packed")
    setup.generation = "none"
    setup.tokens.watch(setup.trainer.student.inner.get_decoder(), "student")
    return setup


def _setup(
    model: Any, tokenizer: Any, work: Work, settings: dict[str, Any], objective: str, engine: Any = None
) -> Setup:
    from raft.runs import read_jsonl
    from raft.train.config import RAFTConfig
    from raft.train.trainer import RAFTTrainer

    args = RAFTConfig(**settings, max_length=work.max_length)
    trainer = RAFTTrainer(model, args, make_rows(work, SEED), processing_class=tokenizer, engine=engine)
    metrics = Path(args.output_dir) / "metrics.jsonl"
    return Setup(trainer, model, Stopwatch(model.device.type), lambda: read_jsonl(metrics)[-1]["seconds"], objective)


def make_engine(
    name: str, model: Any, tokenizer: Any, work: Work, requests: int, enforce_eager: bool | None = None
) -> Any:
    """hf, shared or copied; `requests` of one call at most. enforce_eager: as of VLLMEngine."""
    from raft.engines import MAX_NUM_SEQS, HFEngine, VLLMEngine

    if name == "hf":
        return HFEngine(model, tokenizer, max_model_len=work.max_length)
    return VLLMEngine(
        model,
        tokenizer,
        max_model_len=work.max_length,
        weights=name,
        enforce_eager=enforce_eager,
        max_num_seqs=min(requests, MAX_NUM_SEQS),  # a smaller batch needs no larger cache
        release_on_gpu=model.device.type == "cuda",  # as the trainer has it; without effect on a CPU
    )
