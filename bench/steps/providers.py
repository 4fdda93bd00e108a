"""Whose training step is measured, by name.

ours-shared, ours-copied    RAFTTrainer with vLLM, which shares or copies the student's weights
ours-hf                     RAFTTrainer with transformers' own generation
  ...-unpacked              padded batches, answers and rollouts in a forward each; all else equal
  ...-r4, ...-r16           one call of the engine feeds 4 or 16 optimizer steps
  ...-p512                  packs of at most 512 tokens
trl-distillation            TRL's DistillationTrainer: rollouts and a divergence over the full vocabulary
trl-sdft                    TRL's SDFTTrainer: rollouts, a teacher that sees the answer, top-K on the student's ids
  ...-ce                    with the cross-entropy of the answers added, which our step has and TRL's has not
ours-sft, trl-sft           cross-entropy alone: our method "sft" and TRL's SFTTrainer
"""

import importlib.util
import re
from pathlib import Path

from bench.steps import our_steps
from bench.steps.our_steps import Variant
from bench.steps.setup import Setup, vllm_installed
from bench.steps.work import Work

TRL = re.compile(r"trl-(distillation|sdft)(-ce)?")


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
    ours, trl = Variant.of(name), TRL.fullmatch(name) or name == "trl-sft"
    if not ours and not trl and name != "ours-sft":
        raise ValueError(f"{name} unknown; there are {(__doc__ or '').partition(chr(10) * 2)[2]}")
    needed = "trl" if trl else "vllm" if ours and ours.engine != "hf" else None
    return f"{needed} is not installed" if needed and importlib.util.find_spec(needed) is None else None


def steps_per_refresh(name: str) -> int:
    ours = Variant.of(name)
    return ours.every if ours else 1


def make(name: str, work: Work, device: str, folder: Path, steps: int) -> Setup:
    """Builds model, engine and trainer; `folder` takes their files."""
    if ours := Variant.of(name):
        return our_steps.make_ours(ours, work, device, folder, steps)
    if name == "ours-sft":
        return our_steps.make_sft(work, device, folder, steps)
    from bench.steps import trl_steps  # imports transformers, for which the command line need not wait

    if found := TRL.fullmatch(name):
        return trl_steps.make_trl(found[1], bool(found[2]), work, device, folder, steps)
    return trl_steps.make_sft(work, device, folder, steps)
