"""Files of records: where they go, what they say of their origin. Nothing here imports torch, which takes a while."""

import functools
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

# A run on a machine that keeps nothing puts its records where BENCH_RESULTS says.
RESULTS = Path(os.environ.get("BENCH_RESULTS") or Path(__file__).parent / "results")
PACKAGES = ("torch", "triton", "liger-kernel", "trl")


@functools.cache
def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


HERE = Path(__file__).parent


@functools.cache
def commit(checkout: Path = HERE) -> str:
    """The commit of a working tree, with a plus where it has changes. Of this one BENCH_COMMIT, where it is set: a copy
    on a machine that was lent may have another history."""

    def git(*words: str) -> str:
        return subprocess.check_output(["git", *words], text=True, stderr=subprocess.DEVNULL, cwd=checkout).strip()

    named = os.environ.get("BENCH_COMMIT") if checkout == HERE else None
    if named:
        return named
    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def short_name(device_name: str) -> str:
    """Of a device, as it is in the names of files: cpu, h200, h100-80gb-hbm3."""
    if device_name.startswith("cpu"):
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower().removeprefix("nvidia ")).strip("-")


def path_of(
    *parts: str,  # of the name, the benchmark first
    device_name: str,
    out: Path | None = None,  # named by the user
    quick: bool = False,  # shows that it runs: written only where it was asked for
) -> Path | None:
    """Where a run's records go: bench/results/<benchmark>-<device>-<other parts>.json."""
    if out or (quick and "BENCH_RESULTS" not in os.environ):
        return out
    return RESULTS / ("-".join([parts[0], short_name(device_name), *parts[1:]]) + ".json")


def command_of(name: str, argv: Sequence[str]) -> str:
    """What gives a run's records again; where they were put is left out."""
    kept = [word for before, word in zip(["", *argv], argv, strict=False) if before != "--out"]
    return shlex.join(["python", "-m", "bench", name, *(word for word in kept if not word.startswith("--out"))])


def write(path: Path, text: str) -> None:
    """As a whole or not at all, so that a run that is stopped leaves what it had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
