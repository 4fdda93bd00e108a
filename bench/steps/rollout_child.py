"""One engine in a process of its own, beside the model whose weights it follows."""

import time
from typing import Any

import torch

from bench.common.turns import Desk
from bench.steps import memory
from bench.steps.our_steps import make_engine
from bench.steps.probes import Stopwatch
from bench.steps.setup import SEED
from bench.steps.work import Work, make_model, make_prompts, make_tokenizer, parameter_bytes
from raft.engines import Sampling


def rollout(
    desk: Desk, engine_name: str, work: Work, device: str, count: int, eager: bool, turns: int
) -> dict[str, Any]:
    """engine_name: shared | copied | hf. Gives the peak of its turns and what all parameters hold, in MiB."""
    model, tokenizer = make_model(work, device, SEED), make_tokenizer(work)
    prompts = make_prompts(work, count)
    watch = Stopwatch(device)
    memory.reset_peak(device)
    began = time.monotonic()
    engine = make_engine(engine_name, model, tokenizer, work, count, enforce_eager=eager or None)
    constructed = time.monotonic() - began
    desk.ready(
        {
            "weights": "own" if engine_name == "hf" else engine.weights.mode,
            "construct_s": constructed,
            "construct_peak_mib": memory.peak_mib(device),
            "parameters": model.num_parameters(),
            "student_mib": parameter_bytes(model) / 2**20,
            "threads": torch.get_num_threads(),
        }
    )
    memory.reset_peak(device)
    for turn in range(turns):
        desk.go()
        began = watch.now()
        completions = engine.generate(prompts, Sampling(max_tokens=work.rollout_most, seed=turn))
        generated = watch.now() - began
        with torch.no_grad():  # an optimizer writes every weight, however little it changes
            torch._foreach_mul_(list(model.parameters()), 1.0)
        began = watch.now()
        engine.refresh()
        refreshed = watch.now() - began
        tokens = sum(len(completion.token_ids) for completion in completions)
        desk.hand_in({"generate_s": generated, "refresh_s": refreshed, "tokens": tokens})
    found: dict[str, Any] = {"peak_mib": memory.peak_mib(device), "parameter_mib": memory.parameter_mib()}
    return found | {"greedy_agreement": None if engine_name == "hf" else agreement(engine, model, tokenizer, work)}


def agreement(engine: Any, model: Any, tokenizer: Any, work: Work) -> float:
    """The share of the greedy tokens that transformers gives too, after all refreshes: 1 in fp32; less in half
    precision, where two tokens may be equally likely; near 0 where the engine generates from other weights."""
    prompts, greedy = make_prompts(work, 4, seed=1), Sampling(temperature=0.0, max_tokens=min(16, work.rollout_most))
    pairs = zip(
        engine.generate(prompts, greedy),
        make_engine("hf", model, tokenizer, work, len(prompts)).generate(prompts, greedy),
        strict=True,
    )
    equal = total = 0
    for ours, reference in pairs:
        total += len(reference.token_ids)
        for a, b in zip(ours.token_ids, reference.token_ids, strict=False):
            if a != b:  # what follows has another past
                break
            equal += 1
    return equal / total
