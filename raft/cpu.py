"""How this process shares a CPU with others: how many threads, and how they wait for each other.

torch's threads wait for each other after every product, and its OpenMP (libgomp) lets them spin for milliseconds before
they sleep. Where other processes want the same cores, a thread that spins uses up the time of the one it waits for.
"""

import os
from pathlib import Path

# Turns of libgomp's waiting loop before a thread sleeps: a quarter of a millisecond, in place of 300,000. Measured with
# two busy processes on two cores (bench/LOG.md); on an idle machine nothing was lost, with 1,000 it was up to a third.
SPINS = 10_000

_CGROUP = Path("/sys/fs/cgroup")


def share_cpu() -> None:
    """Sets the environment of libraries that are imported later, so before torch is; what the user has set stays."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    granted = quota()
    if granted is not None and granted < len(_cores()):
        os.environ.setdefault("OMP_NUM_THREADS", str(granted))


def split_cpu(processes: int) -> None:
    """For processes that are started side by side: the cores that this one may use, in equal parts."""
    mine = os.environ.get("OMP_NUM_THREADS", "")
    cores = int(mine) if mine.isdecimal() and int(mine) > 0 else quota() or len(_cores())
    os.environ["OMP_NUM_THREADS"] = str(max(1, cores // processes))


def quota(cgroup: Path = _CGROUP) -> int | None:
    """CPUs that a container may use, rounded up; None without a limit. torch counts the machine's cores instead."""
    try:
        if (cgroup / "cpu.max").exists():  # cgroup v2
            allowed, period = (cgroup / "cpu.max").read_text().split()
        else:
            allowed, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return -(-int(allowed) // int(period)) if int(allowed) > 0 else None
    except (OSError, ValueError):  # no such limit ("max"), or no Linux
        return None


def _cores() -> set[int] | range:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
