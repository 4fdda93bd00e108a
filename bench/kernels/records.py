"""The records of the losses, one for each operation, pass, provider and shape; and their table."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby

from bench.common.limits import Ceilings
from bench.common.measure import Measured
from bench.common.records import digits, grouped, number, origin
from bench.common.records import table as markdown
from bench.kernels.cases import LABELS, Case
from bench.kernels.floors import algorithmic_flops, compulsory_bytes, floor_ms
from bench.kernels.providers import NO_LOSS

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


def case_of(record: dict) -> Case:
    return Case(**{name: record[name] for name in CASE})


def by_case(records: Sequence[dict]) -> dict[Case, list[dict]]:
    return grouped(records, case_of)


HEAD = "| op | pass | provider | loss over | p20 ms | p50 ms | p80 ms | peak MiB | TFLOP/s | % of floor |"
COLUMNS = ("ms_p20", "ms_p50", "ms_p80", "peak_mib", "tflops", "percent_of_floor")
NOTES = """\
Time and memory of one call; peak is beyond the inputs, results included. TFLOP/s counts what the operation needs, not
what a provider spends. "% of floor" is the floor (bench/kernels/floors.py) over p50. A provider whose loss is over the
full vocabulary computes another loss than ours, and is held against the same floor: it is what could be used instead.
Liger computes gradients in its forward pass already. The student's `topk_kl` has the teacher given: its top-K, or for
`liger_kl` its probabilities over the vocabulary; making them is not timed. `gemm` is the product alone."""


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
        parts.append(f"**{case}**, {about}")
        rows = []
        for (op, name), group in groupby(found, key=lambda r: (r["op"], r["pass"])):
            for r in group:
                cells = [op, name, r["provider"], r["loss"]]
                rows.append([*cells, *(number(r[column]) for column in COLUMNS)])
            rows.append([op, name, "floor", "", "", number(r["floor_ms"]), "", "", "", "100"])
        parts.append(markdown(HEAD, 4, rows))
    return "\n\n".join(parts)
