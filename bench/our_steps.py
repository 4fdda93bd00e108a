"""Our trainer, with each engine, packed or padded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.probes import Stopwatch, Tokens, around
from bench.step_setup import SEED, Setup, shared_settings, watch_generate
from bench.work import Work, make_model, make_rows, make_tokenizer


def make_ours(engine_name: str, unpacked: bool, every: int, work: Work, device: str, folder: Path, steps: int) -> Setup:
    """engine_name: as of `make_engine`. every: optimizer steps that one call of the engine feeds."""
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
