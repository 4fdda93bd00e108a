"""The most memory that this process has held: of the whole process on a CPU, of torch's allocator on a GPU."""

import contextlib
import ctypes
import gc
import sys

import torch
from torch import nn


def peak_mib(device: str) -> float:
    """Since the last `reset_peak`, or since the start."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # Not getrusage: a process that was forked starts with the peak of the one it came from.
    peak = _status_kib("VmHWM")
    if peak is not None:
        return peak / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def reset_peak(device: str) -> None:
    """From here on. On a CPU that needs Linux; elsewhere the peak stays that of the process's whole life."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets VmHWM


def trim() -> None:
    """Gives what this process has freed back to the system (with glibc; elsewhere nothing happens)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def parameter_mib() -> float:
    """Of all parameters in this process, each storage counted once: the student's, the teacher's and an engine's."""
    gc.unfreeze()  # vLLM hides what it has made from the collector
    gc.collect()
    storages = {}
    for found in gc.get_objects():
        if isinstance(found, nn.Parameter) and found.device.type != "meta":
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values()) / 2**20


def _status_kib(field: str) -> int | None:
    try:
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))
    except (OSError, StopIteration):
        return None
