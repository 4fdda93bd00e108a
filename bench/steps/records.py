"""The records of whole training steps, one a provider and model, and their table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.common.limits import Ceilings
from bench.common.measure import percentiles
from bench.common.records import digits, grouped, number, origin
from bench.common.records import table as markdown
from bench.steps.floors import floor_s
from bench.steps.work import Work, answer_tokens

PARTS = ("rollout", "teacher", "forward_backward", "optimizer", "refresh", "other")
REGIME = "log-normal prompts and answers, geometric rollouts"  # of made-up words
COUNTS = ("completions", "completion", "longest")


def step_record(
    provider: str,
    work: Work,
    device: str,
    about: dict[str, Any],  # what the child gave when it was ready
    final: dict[str, Any] | None,  # what it gave at its end; None where it was interrupted
    steps: Sequence[dict[str, Any]],  # as bench.steps.train_child hands them in, without the warm-up
    every: int,  # steps that one call of the engine feeds
    limit: Ceilings,
    command: str,
) -> dict[str, Any]:
    """Percentiles are over calls of the engine: each counts as the mean of the `every` steps that it feeds."""
    cycles = [steps[i : i + every] for i in range(0, len(steps) - every + 1, every)]
    totals = np.array([np.mean([step["seconds"] for step in cycle]) for cycle in cycles])
    p20, p50, p80 = percentiles(1e3 * totals)
    seconds = _parts(cycles, totals)
    tokens = _mean_tokens(steps) | {"answer": answer_tokens(work)}
    floor = floor_s(work, about["parameters"], _item_bytes(work), tokens, about["weights"], limit)
    memory = final or {"peak_mib": None, "parameter_mib": None}
    return {
        "op": "step",
        "pass": "full",
        "provider": provider,
        "objective": about["objective"],
        "generation": about["generation"],
        "device": device,
        **model_fields(work, about),
        "n": digits(tokens["real"]["student"]),
        "regime": f"rows of {Path(work.data).name}" if work.data else REGIME,
        "batch": work.batch,
        "steps_per_refresh": every,
        "steps": len(steps),
        "ms_p20": digits(p20),
        "ms_p50": digits(p50),
        "ms_p80": digits(p80),
        "ms_per_1000_tokens": digits(1e3 * p50 / tokens["real"]["student"]),
        "seconds": {name: digits(value) for name, value in seconds.items()},
        "refresh_percent": digits(100 * seconds["refresh"] / sum(seconds.values())),
        "tokens": {name: digits(value) for name, value in tokens["real"].items()},
        "padding": {name: digits(value) for name, value in tokens["padding"].items()},
        "rollout_length": digits(tokens["completion"] / max(tokens["completions"], 1)),
        "peak_mib": None if memory["peak_mib"] is None else digits(memory["peak_mib"]),
        "parameter_mib": memory["parameter_mib"],
        "floor_ms": {name: digits(1e3 * value) for name, value in floor.items()},
        "percent_of_floor": digits(1e5 * sum(floor.values()) / p50),
        **origin(limit, command),
    }


def model_fields(work: Work, about: dict[str, Any]) -> dict[str, Any]:
    """What every record of a training model says of it. `about`: what the child gave when it was ready."""
    return {
        "model": work.name,
        "h": work.config["hidden_size"],
        "v": work.vocabulary,
        "k": work.k,
        "dtype": work.dtype,
        **{name: about[name] for name in ("weights", "parameters", "student_mib", "threads")},
    }


def _parts(cycles: Sequence[Sequence[dict[str, Any]]], totals: np.ndarray) -> dict[str, float]:
    """Seconds a step, means over the cycles between the 20th and the 80th percentile, so that they add up."""
    low, high = np.quantile(totals, 0.2, method="lower"), np.quantile(totals, 0.8, method="higher")
    kept = [step for cycle, total in zip(cycles, totals, strict=True) if low <= total <= high for step in cycle]
    found = {name: float(np.mean([step["parts"].get(name, 0.0) for step in kept])) for name in PARTS[:-1]}
    found["other"] = max(float(np.mean([step["seconds"] for step in kept])) - sum(found.values()), 0.0)
    return found


def _mean_tokens(steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    counted = [step["tokens"] for step in steps]
    means: dict[str, Any] = {name: float(np.mean([c[name] for c in counted])) for name in COUNTS}
    for kind in ("real", "padding"):
        means[kind] = {name: float(np.mean([c[kind][name] for c in counted])) for name in counted[0][kind]}
    return means


def _item_bytes(work: Work) -> int:
    return {"float32": 4, "bfloat16": 2}[work.dtype]


HEAD = (
    "| provider | generation, weights | rollout | teacher | forward + backward | optimizer | refresh | other "
    "| step p20 | step p50 | step p80 | student tokens | ms per 1000 | padding, % | % of floor | peak MiB |"
)
NOTES = """\
Milliseconds a step; parts are means over the steps between the 20th and the 80th percentile. A step's work varies
with its rows, and so do p20 and p80. With r4 and r16, which generate for 4 or 16 steps at once, a step is the mean of
those. Student tokens are those of the sequences in its forward (a question once, where answer and rollout share it),
means over steps, and "ms per 1000" is p50 over them.
Padding is the share of what passes through the layers in rollouts, teacher and student together that belongs to no
sequence; vLLM feeds none. Peak is that of the whole process from its start, libraries included; on a CPU it is
resident memory, in a process of its own, which is not timed, and in which whatever is freed goes back to the system
at once. "% of floor" is the floor (bench/steps/floors.py) of the same tokens over p50.

What differs in work: ours is CE on the answers and KL on the teacher's top-K of the rollouts, the teacher sees the
answer. `trl-distillation` has no CE, its teacher sees the question only, and its divergence is over the full
vocabulary (on a CPU TRL also projects its padding). `trl-sdft` has no CE and takes top-K on the student's ids from
materialised logits; its teacher sees the answer. `-ce` adds the cross-entropy of the answers in a forward of its own:
the same work as ours, as far as TRL goes. TRL generates with transformers where its colocated vLLM does not run. All
train with the same model, rows, batch, dtype, sampling, cap of lengths and optimizer, log every step, and checkpoint
gradients on a GPU alone; in bf16 ours keeps fp32 master weights and TRL does not. `-unpacked` pads whole sequences on
the right; TRL pads prompts on the left and completions on the right, which is more. Packs are laid into padded rows
for the attention alone, where that is SDPA: such padding passes through no layer and is not counted."""


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: one table a model, one line a provider."""
    parts = []
    for model, found in by_model(records).items():
        first = found[0]
        parts.append(
            f"**{model}**, {first['parameters'] / 1e6:,.1f} M parameters, H={first['h']} V={first['v']} "
            f"K={first['k']}, {first['dtype']}, {first['batch']} rows a step, {first['device']}"
        )
        parts.append(markdown(HEAD, 2, map(_cells, found)))
    return "\n\n".join(parts)


def _cells(r: dict[str, Any]) -> list[str]:
    times = [*(1e3 * r["seconds"][name] for name in PARTS), r["ms_p20"], r["ms_p50"], r["ms_p80"]]
    cells = [r["provider"], f"{r['generation']}, {r['weights']}", *(number(t) for t in times)]
    cells += [number(r["n"]), number(r["ms_per_1000_tokens"]), f"{padding_percent(r):.0f}"]
    return [*cells, number(r["percent_of_floor"]), number(r["peak_mib"])]


def by_model(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return grouped(records, lambda r: r["model"])


def padding_percent(record: dict[str, Any]) -> float:
    padding, real = sum(record["padding"].values()), sum(record["tokens"].values())
    return 100 * padding / max(padding + real, 1)
