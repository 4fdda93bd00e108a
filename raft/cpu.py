"""Settings for sharing the CPU with other processes: the number of threads, and how long they spin while they wait.

torch's threads wait for each other after every matrix product, and its OpenMP (libgomp) lets them spin for milliseconds
before they sleep. If other processes need the same cores, a spinning thread takes time from the one that it waits for.
"""

import os
from pathlib import Path

# Iterations of libgomp's waiting loop before a thread sleeps, about 0.25 ms; its default is 300,000. Measured with two
# busy processes on two cores (bench/LOG.md). On an idle machine it costs nothing, while 1,000 costs up to a third.
SPINS = 10_000

_CGROUP = Path("/sys/fs/cgroup")


def share_cpu(cgroup: Path = _CGROUP, cores: int | None = None) -> None:
    """Sets environment variables of OpenMP, except those that the user has set. Call it before torch is imported.

    cgroup: where the container's limit is. cores: of the machine, by default those that this process may use.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    granted = quota(cgroup)
    if granted is not None and granted < (cores or len(_cores())):
        os.environ.setdefault("OMP_NUM_THREADS", str(granted))


def split_cpu(processes: int) -> None:
    """Sets OMP_NUM_THREADS for `processes` child processes that run at the same time: an equal share of the cores."""
    mine = os.environ.get("OMP_NUM_THREADS", "")
    cores = int(mine) if mine.isdecimal() and int(mine) > 0 else quota() or len(_cores())
    os.environ["OMP_NUM_THREADS"] = str(max(1, cores // processes))


def quota(cgroup: Path = _CGROUP) -> int | None:
    """CPUs that the container may use, rounded up; None without a limit. torch ignores this and uses all cores."""
    try:
        if (cgroup / "cpu.max").exists():  # cgroup v2
            allowed, period = (cgroup / "cpu.max").read_text().split()
        else:
            allowed, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return -(-int(allowed) // int(period)) if int(allowed) > 0 else None
    except (OSError, ValueError):  # no limit ("max"), or not Linux
        return None


def _cores() -> set[int] | range:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
