"""What `python -m bench gpu` runs, the most telling first: each stage is one command with a limit of its own."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

INTERPRETED = {"TRITON_INTERPRET": "1"}
COMPILERS = "raft_kernels,torch.compile,liger_jsd"  # a peer that compiles itself takes half a minute at each size


@dataclass(frozen=True)
class Stage:
    name: str
    limit_s: float  # after which it is interrupted
    least_s: float  # time that has to be left for it to start
    words: tuple[str, ...]  # after `python`
    environment: dict[str, str] = field(default_factory=dict)
    absent: Callable[[Path], str | None] = lambda results: None  # why it cannot run, if it cannot


def bench(words: str) -> tuple[str, ...]:
    return ("-m", "bench", *words.split())


def stages(device: str) -> list[Stage]:
    """On a CPU the same commands at tiny sizes: they test that everything runs, and their figures mean nothing."""
    cuda = device == "cuda"
    quick = "" if cuda else "--quick"
    size = f"--device {device} {quick}"
    point = f"kernels {size} --plain --regime both --sweep point"
    axes = f"kernels {size} --plain --sweep axes --name axes --reps 8 --cap 0.3"
    all_but_compilers = "raft_kernels,gemm,gemm+topk,torch,torch_native,trl,liger_ce,liger_fused_jsd,liger_kl"
    short = "--rollout-tokens 32" if cuda else ""
    step = f"train {size} --providers ours-hf --steps 2 {short}"
    rollout = f"rollout {size} --prompts 16 --reps 2 {short}"
    step += " --models " + ("smollm3-3b,llama-3.2-3b,phi-4-mini" if cuda else "quick")
    rollout += (
        " --providers vllm-shared,hf --models smollm3-2-layers,smollm3-3b" if cuda else " --providers hf --models quick"
    )

    def no_winners(results: Path) -> str | None:
        return None if any(results.glob("tune-*.json")) else "there are no records of tune"

    def no_vllm(_results: Path) -> str | None:
        return None if not cuda or importlib.util.find_spec("vllm") else "vllm is not installed"

    def no_interpreter(_results: Path) -> str | None:
        return None if cuda else _no_interpreter()

    interpreted = {} if cuda else INTERPRETED
    return [
        Stage("env", 45, 10, bench(f"machine {quick}")),  # reads torch from disk for the first time
        Stage("smoke", 60, 15, bench("tests --group smoke")),
        Stage("point", 100, 25, bench(f"{point} --name point --providers {all_but_compilers}")),
        Stage("profile", 40, 15, bench(f"profile {size}")),
        Stage("numbers", 100, 20, bench("tests --group numbers")),
        Stage("tune", 110, 30, bench(f"tune {size} {'' if cuda else '--reps 1'}"), interpreted, no_interpreter),
        Stage("tuned", 40, 15, bench(f"{point} --name tuned --providers raft_kernels,gemm --tuned"), absent=no_winners),
        Stage("compiled-tests", 30, 10, bench("tests --group compiled")),
        Stage("compiled", 70, 30, bench(f"{point} --name compiled --providers {COMPILERS}")),
        Stage("axes", 150, 30, bench(f"{axes} --providers {all_but_compilers}")),
        Stage("rest", 120, 20, bench("tests --group rest")),
        Stage("step", 90, 40, bench(step)),
        Stage("sanitizer", 120, 20, bench("tests --group sanitizer")),
        Stage("rollout", 120, 50, bench(rollout), absent=no_vllm),
    ]


def _no_interpreter() -> str | None:
    """Some versions of the interpreter fail at every loop, whatever the kernel."""
    import numpy
    import triton

    old = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)
    new = tuple(map(int, numpy.__version__.split(".")[:2])) >= (2, 4)
    return f"triton {triton.__version__}'s interpreter fails under numpy {numpy.__version__}" if old and new else None
