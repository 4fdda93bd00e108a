"""The machine of a run, and how busy it was with other things.

python -m bench machine    prints it and writes machine-<device>.json: device, driver, versions, what it does at most
"""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from bench.common import files, limits, records
from bench.common.options import make_parser


def device_name(device: str) -> str:
    """Of the GPU, or of the CPU with the number of threads that torch uses."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' if threads > 1 else ''}"


def state() -> str:
    """One line: processor, cores, memory and load. To be asked before the run adds to the load."""
    parts = [_processor(), f"{os.cpu_count()} cores"]
    memory = _memory_gib()
    if memory:
        parts.append(f"{memory['MemTotal']:.0f} GiB of memory, {memory['MemAvailable']:.0f} free")
    if hasattr(os, "getloadavg"):  # processes that ran or waited for a core, mean of the last minute
        parts.append(f"load {os.getloadavg()[0]:.2f} before the run")
    return ", ".join(parts)


def free_gib() -> float | None:
    """Memory that processes may still take; None where the system does not say."""
    return _memory_gib().get("MemAvailable")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory_gib() -> dict[str, float]:
    """Total and available memory; empty where there is no /proc/meminfo."""
    try:
        lines = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
    except OSError:
        return {}
    return {name[:-1]: int(value) / 2**20 for name, value, *_ in lines if name in ("MemTotal:", "MemAvailable:")}


def main(argv: list[str]) -> int:
    parser = make_parser("machine", __doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: its ceilings mean nothing")
    parser.add_argument("--out", type=Path, help="the record")
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = device_name(device)
    about: dict[str, Any] = {"device": name, "state": state(), "system": platform.platform()}
    if device == "cuda":
        p = torch.cuda.get_device_properties(0)
        about |= {"capability": f"{p.major}.{p.minor}", "multiprocessors": p.multi_processor_count}
        about |= {"memory_gib": records.digits(p.total_memory / 2**30), "l2_mib": p.L2_cache_size / 2**20}
        about |= {"cuda": torch.version.cuda, "driver": _driver(), "sanitizer": bool(shutil.which("compute-sanitizer"))}
    about["packages"] = dict(sorted((d.name or "", d.version) for d in importlib.metadata.distributions()))
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    about |= records.origin(limits.ceilings(device, dtype, args.quick), files.command_of("machine", argv))
    print(*(f"{key}: {value}" for key, value in about.items() if key != "packages"), sep="\n")
    out = files.path_of("machine", device_name=name, out=args.out, quick=args.quick)
    if out is not None:
        files.write_records(out, [about])
    return 0


def _driver() -> str:
    """One line of nvidia-smi: driver, clocks, power, temperature."""
    fields = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
    try:
        return subprocess.check_output(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], text=True, timeout=10
        ).strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
