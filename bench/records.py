"""The records of bench/results/*.json: a list with one record per operation, provider, pass and shape; and their table."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby

from bench.cases import LABELS, Case
from bench.files import PACKAGES, commit, versions
from bench.limits import Ceilings, algorithmic_flops, compulsory_bytes, floor_ms
from bench.measure import Measured
from bench.providers import NO_LOSS

CASE = tuple(Case.__dataclass_fields__)


def record(
    op: str,
    name: str,  # of the pass
    provider: str,
    loss: str,
    device: str,
    case: Case,
    measured: Measured,
    *,
    limit: Ceilings,
    union_fraction: float,
    covered_mass: float,
    command: str,
) -> dict:
    floor = floor_ms(op, name, case, limit, union_fraction)
    return {
        "op": op,
        "pass": name,
        "provider": provider,
        "loss": loss,
        "device": device,
        **asdict(case),
        **{key: digits(value) for key, value in asdict(measured).items()},
        "tflops": digits(algorithmic_flops(op, name, case) / measured.ms_p50 / 1e9),
        "bytes": compulsory_bytes(op, name, case),
        "floor_ms": digits(floor),
        "percent_of_floor": None if loss == NO_LOSS else digits(100 * floor / measured.ms_p50),
        "union_fraction": digits(union_fraction),
        "covered_mass": digits(covered_mass),
        **origin(limit, command),
    }


def origin(limit: Ceilings, command: str, packages: tuple[str, ...] = PACKAGES) -> dict:
    """What every record ends with: the machine's ceilings, and what it takes to measure again."""
    return {
        "limit": {"gemm_tflops": digits(limit.flops / 1e12), "copy_gb_s": digits(limit.bandwidth / 1e9)},
        "versions": versions(packages),
        "commit": commit(),
        "command": command,
    }


def digits(x: float) -> float:
    """Five of them: more would only say how the machine felt that day."""
    return float(f"{x:.5g}")


def case_of(record: dict) -> Case:
    return Case(**{name: record[name] for name in CASE})


def by_case(records: Sequence[dict]) -> dict[Case, list[dict]]:
    found: dict[Case, list[dict]] = {}
    for r in records:
        found.setdefault(case_of(r), []).append(r)
    return found


HEAD = "| op | pass | provider | loss over | p20 ms | p50 ms | p80 ms | peak MiB | TFLOP/s | % of floor |"
NOTES = """\
Time and memory of one call; peak is beyond the inputs, results included. TFLOP/s counts what the operation needs, not
what a provider spends. "% of floor" is the floor (bench/limits.py) over p50. A provider whose loss is over the
full vocabulary computes another loss than ours, and is held against the same floor: it is what could be used instead.
Liger computes gradients in its forward pass already. The student's `topk_kl` has the teacher given: its top-K, or for
`liger_kl` its probabilities over the vocabulary; making them is not timed. `gemm` is the product alone."""


def number(x: float | None) -> str:
    """Three digits or more, without decimals that nobody reads."""
    if x is None:
        return "-"
    return f"{x:,.0f}" if x >= 1000 else f"{x:.1f}" if x >= 10 else f"{x:.3g}"


def table(records: Sequence[dict]) -> str:
    """Markdown: one table a case, one line a record."""
    parts = []
    for case, found in by_case(records).items():
        first = found[0]
        about = (
            "cross-entropy"
            if case.regime == LABELS
            else (
                f"union of the ids of 128 tokens {first['union_fraction']:.3f} of V, teacher's mass in its top-K "
                f"{first['covered_mass']:.3f}"
            )
        )
        parts.append(f"**{case}**, {about}\n")
        lines = [HEAD, "|---|---|---|---|" + "---:|" * 6]
        for (op, name), group in groupby(found, key=lambda r: (r["op"], r["pass"])):
            for r in group:
                times = " | ".join(number(r[c]) for c in ("ms_p20", "ms_p50", "ms_p80", "peak_mib"))
                lines.append(
                    f"| {op} | {name} | {r['provider']} | {r['loss']} | {times} | {number(r['tflops'])} "
                    f"| {number(r['percent_of_floor'])} |"
                )
            lines.append(f"| {op} | {name} | floor | | | {number(r['floor_ms'])} | | | | 100 |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts).rstrip()
