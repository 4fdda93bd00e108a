"""Our trainer, with each engine, packed or padded."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bench.probes import Stopwatch, Tokens, around
from bench.step_setup import SEED, Setup, shared_settings, watch_generate
from bench.work import Work, make_model, make_rows, make_tokenizer

NAME = re.compile(r"ours-(shared|copied|hf)(-unpacked)?(?:-r(\d+))?(?:-p(\d+))?")


class Variant(NamedTuple):
    """Of our trainer; its name is in bench/step_providers.py."""

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
    from bench.unpacked import unpack
    from raft.runs import read_jsonl
    from raft.train.config import RAFTConfig
    from raft.train.trainer import RAFTTrainer

    model, tokenizer = make_model(work, device, SEED), make_tokenizer(work)
    engine = make_engine(variant.engine, model, tokenizer, work, work.batch * variant.every)
    args = RAFTConfig(
        **shared_settings(work, device, folder, steps),
        top_k=work.k,
        max_length=work.max_length,
        teacher_max_length=work.teacher_max_length,
        rollout_max_tokens=work.rollout_most,
        steps_per_refresh=variant.every,
        max_tokens_per_micro_batch=variant.budget,
    )
    trainer = RAFTTrainer(model, args, make_rows(work, SEED), processing_class=tokenizer, engine=engine)
    if variant.unpacked:
        unpack(trainer, work.batch)
    tokens = Tokens()
    tokens.watch(trainer.student.inner.get_decoder(), "student")
    teacher = trainer.teacher
    assert teacher is not None
    tokens.watch(teacher.model.inner.get_decoder(), "teacher")
    count_engine(engine, model, tokens)
    batch = "padded, answers and rollouts apart" if variant.unpacked else "packed, answers and rollouts together"
    batch += f", at most {variant.budget} tokens at once" if variant.budget else ""
    plain = variant.engine == "hf"
    return Setup(
        trainer,
        model,
        tokens,
        Stopwatch(device),
        # The last line of what every run of this trainer writes.
        lambda: read_jsonl(folder / "metrics.jsonl")[-1]["seconds"],
        "transformers" if plain else "vLLM",
        "own" if plain else engine.weights.mode,
        f"CE on answers + KL on the teacher's top-{work.k}, teacher sees the answer; {batch}",
    )


def make_engine(
    name: str, model: Any, tokenizer: Any, work: Work, requests: int, enforce_eager: bool | None = None
) -> Any:
    """hf, shared or copied; `requests` of one call at most. enforce_eager: as of VLLMEngine."""
    from raft.engines import HFEngine, VLLMEngine

    if name == "hf":
        return HFEngine(model, tokenizer, max_model_len=work.max_length)
    return VLLMEngine(
        model,
        tokenizer,
        max_model_len=work.max_length,
        weights=name,
        enforce_eager=enforce_eager,
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
