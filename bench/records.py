"""The records of bench/results/*.json: a list with one record per operation, provider, pass and shape."""

import importlib.metadata
import json
import os
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path

from bench.measure import Measured

RESULTS = Path(__file__).parent / "results"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "triton", "liger-kernel", "trl"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of the working tree, with a plus where it has changes; "unknown" outside a repository."""

    def git(*words: str) -> str:
        return subprocess.check_output(
            ["git", *words], text=True, stderr=subprocess.DEVNULL, cwd=Path(__file__).parent
        ).strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def record(case: dict, provider: str, measured: Measured, command: str) -> dict:
    """`case` holds op, device, n, h, v, k, dtype, regime and pass."""
    return {
        **case,
        "provider": provider,
        **{name: round(value, 3) for name, value in asdict(measured).items()},
        "versions": versions(),
        "commit": commit(),
        "command": command,
    }


def write(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(records, indent=1) + "\n")
    os.replace(temporary, path)


def table(records: list[dict]) -> str:
    """A Markdown table, one line per record."""
    lines = ["| op | pass | provider | p20 ms | p50 ms | p80 ms | peak MiB |", "|---|---|---|---|---|---|---|"]
    for r in records:
        cells = [
            r["op"],
            r["pass"],
            r["provider"],
            *(f"{r[c]:.1f}" for c in ("ms_p20", "ms_p50", "ms_p80", "peak_mib")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
