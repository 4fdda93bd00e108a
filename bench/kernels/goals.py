"""What the records say: how many times as fast as each peer, how much of its memory, and which goals are met."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from bench.common import goals as common
from bench.common.goals import goal_line, ratio
from bench.kernels.cases import CPU, CUDA, LABELS, Case
from bench.kernels.floors import itemsize
from bench.kernels.providers import OURS, is_ours
from bench.kernels.records import by_case

FULL = ("linear_topk_kl", "full")
TEACHER = ("linear_topk", "forward")
CROSS_ENTROPY = ("linear_cross_entropy", "full")


def summary(records: Sequence[dict]) -> list[str]:
    return common.summary(by_case(records), lambda case, found: (*ratios(found), *goals(case, found)))


def full_records(records: Iterable[dict]) -> dict[str, dict]:
    """Provider -> its record of the whole loss, forward and backward."""
    return _of(records, FULL)


def _of(records: Iterable[dict], op_and_pass: tuple[str, str]) -> dict[str, dict]:
    """Provider -> its record."""
    return {r["provider"]: r for r in records if (r["op"], r["pass"]) == op_and_pass}


def ratios(records: Sequence[dict]) -> Iterator[str]:
    full = full_records(records)
    ours = full.pop(OURS, None)
    if ours is None or not full:
        return
    times = ", ".join(f"vs {name} {r['ms_p50'] / ours['ms_p50']:.1f} times" for name, r in full.items())
    line = f"linear_topk_kl full: {OURS} {times} as fast"
    if "torch" in full:
        line += f"; peak of {OURS} / peak of torch = {ours['peak_mib'] / full['torch']['peak_mib']:.2f}"
    yield line


def goals(case: Case, records: Sequence[dict]) -> Iterator[str]:
    """The project's goals, at the sizes that they are set for."""
    if case.regime == LABELS:
        yield from cross_entropy_goals(case, records)
        return
    full, teacher = full_records(records), _of(records, TEACHER)
    ours = full.get(OURS)
    if replace(case, regime=CPU.regime) == CPU:
        yield goal_line(">= 2.5", ratio(full.get("trl"), ours, "ms_p50"), "x faster than TRL")
        yield goal_line("<= 0.6", ratio(ours, full.get("torch"), "peak_mib"), "of naive torch top-K", "peak ")
    if replace(case, regime=CUDA.regime) == CUDA:
        best = _fastest_peer(full)
        named = f" ({best['provider']}, {best['ms_p50']:.1f} ms)" if best else ""
        yield goal_line(f"<= {_milliseconds(case, records)}", ours["ms_p50"] if ours else None, "ms")
        yield goal_line("<= 0.5", ratio(ours, best, "ms_p50"), f"of the best peer{named}")
        yield goal_line("<= 2.1", ours["peak_mib"] / 1024 if ours else None, "GiB", "peak ")
        yield goal_line("<= 1.1", ratio(teacher.get(OURS), teacher.get("gemm"), "ms_p50"), "x bare GEMM", "teacher ")


def cross_entropy_goals(case: Case, records: Sequence[dict]) -> Iterator[str]:
    """On any machine, at any vocabulary."""
    found = _of(records, CROSS_ENTROPY)
    ours, plain = found.get(OURS), found.get("torch")
    best = _fastest_peer(found)
    named = f" ({best['provider']})" if best else ""
    yield goal_line(
        "<= 1.05", ratio(ours, best, "ms_p50"), f"of the time of the fastest other{named}", "cross-entropy "
    )
    yield goal_line("<= 0.5", ratio(ours, plain, "peak_mib"), "of plain torch's peak", "cross-entropy ")
    if ours and plain:
        gradients = (case.n + case.v) * case.h * itemsize(case) / 2**20
        mine, theirs = ours["peak_mib"] - gradients, plain["peak_mib"] - gradients
        about = f"beyond the gradients, {gradients:.0f} MiB"
        yield f"cross-entropy: {about}, {mine:.0f} MiB against {theirs:.0f}: {mine / theirs:.2f}"


def _fastest_peer(records: dict[str, dict]) -> dict | None:
    return min((r for name, r in records.items() if not is_ours(name)), key=lambda r: r["ms_p50"], default=None)


def _milliseconds(case: Case, records: Sequence[dict]) -> int:
    """The goal for the whole loss on an H200; an H100 computes as fast, with less bandwidth."""
    if case.regime != CUDA.regime:
        return 22
    return 33 if any("H100" in r["device"] for r in records) else 30
