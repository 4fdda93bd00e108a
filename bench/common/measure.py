"""measure(): the one way in which benchmarks take time and memory."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

MIN_REPS = 5


@dataclass(frozen=True)
class Measured:
    ms_p20: float
    ms_p50: float
    ms_p80: float
    peak_mib: float  # most memory held at once beyond what was held before the call


def measure(
    variants: Mapping[str, Callable[[], object]],
    device: str,
    reps: int = 5,
    cap_s: float = float("inf"),
    on_error: Callable[[str, Exception], None] | None = None,
) -> dict[str, Measured]:
    """Times every variant `reps` times, one variant after the other in each round, so that a drift of the machine hits
    all of them. A variant that has spent `cap_s` seconds is done after MIN_REPS calls. Before that each is called
    once for its peak memory, which also warms it up. `on_error` gets the name and the error of a variant that fails,
    which is then left out; without `on_error` the error is raised."""
    peaks: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in variants}

    for _ in range(1 + reps):
        for name in list(times):
            try:
                if name not in peaks:
                    peaks[name] = peak_mib(variants[name], device)
                elif len(times[name]) < MIN_REPS or sum(times[name]) < cap_s * 1e3:
                    times[name].append(milliseconds(variants[name], device))
            except Exception as error:
                if on_error is None:
                    raise
                del times[name]
                on_error(name, error)
    return {name: Measured(*percentiles(ms), peaks[name]) for name, ms in times.items()}


def percentiles(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """The 20th, the 50th and the 80th."""
    p20, p50, p80 = (float(np.quantile(values, q)) for q in (0.2, 0.5, 0.8))
    return p20, p50, p80


def milliseconds(call: Callable[[], object], device: str) -> float:
    """Of one call; on a GPU by events, and after all earlier work has ended."""
    if device == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def peak_mib(call: Callable[[], object], device: str) -> float:
    """The most memory that the call held at once beyond what was held before it, its result included."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # On a CPU every allocation and release of torch's allocator is an event; their running sum is what is held.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    del result
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20
