"""The distribution: two import packages from two folders, nothing else, and the scripts around it."""

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import raft

ROOT = Path(__file__).parents[2]
SOURCES = ("raft", "kernels", "pyproject.toml", "setup.py", "README.md", "LICENSE")


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    shown = list(map(str, command))
    return subprocess.run(
        shown, check=False, capture_output=True, text=True, cwd=cwd, env=plain | environment, timeout=240
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: setuptools leaves its build folder beside the sources."""
    pytest.importorskip("pip")
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        out,
        ".",
    ]
    built = run(*command, cwd=copy)
    assert built.returncode == 0, built.stderr
    [path] = out.glob("*.whl")
    return path


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "raft").rglob("*.py")}
    modules |= {str(path.relative_to(ROOT / "kernels")) for path in (ROOT / "kernels").rglob("*.py")}
    assert modules <= found
    assert {name.split("/")[0] for name in found} == {"raft", "raft_kernels"}
    assert "raft_kernels/py.typed" in found
    for folder in ("demo/base", "report/templates"):
        files = {str(path.relative_to(ROOT)) for path in (ROOT / "raft" / folder).glob("*") if path.is_file()}
        assert files <= found


def test_the_wheels_metadata(wheel):
    assert wheel.name.startswith(f"raft_distill-{raft.__version__}-py3-none-any")
    with zipfile.ZipFile(wheel) as archive:
        texts = {
            name.rpartition("/")[2]: archive.read(name).decode() for name in archive.namelist() if "dist-info" in name
        }
    assert texts["entry_points.txt"].split() == ["[console_scripts]", "raft", "=", "raft.cli:main"]
    assert "License-Expression: Apache-2.0" in texts["METADATA"] and "Requires-Python: >=3.11" in texts["METADATA"]
    for extra in ("vllm", "vllm-cpu", "flash-attn", "eval", "bench", "test", "ray"):
        assert f"Provides-Extra: {extra}\n" in texts["METADATA"]
    assert "Apache License" in texts["LICENSE"]


def test_the_wheel_runs_from_anywhere(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "import raft, raft_kernels; print(raft.__file__, raft_kernels.__file__)"
    shown = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split() == [str(tmp_path / "site" / name / "__init__.py") for name in ("raft", "raft_kernels")]


def test_the_folder_kernels_is_no_package():
    """Hugging Face has a package of that name, which transformers imports: ours must not stand in its way."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    code = "import importlib.util as u; spec = u.find_spec('kernels'); print(spec and spec.origin)"
    shown = run(sys.executable, "-c", code, cwd=ROOT)
    assert not shown.stdout.strip().startswith(str(ROOT / "kernels")), shown.stdout


# The folder of that name is found too where the package is not, but has no file to load.
@pytest.mark.skipif(
    getattr(importlib.util.find_spec("kernels"), "origin", None) is None,
    reason="Hugging Face's kernels is not installed",
)
def test_hugging_faces_kernels_works_beside_ours():
    """From the repository root, where a folder of the same name lies, with `python -m` putting it on the path first."""
    code = (
        "import kernels, raft_kernels, transformers.integrations.hub_kernels as h; print(kernels.__file__, h.__name__)"
    )
    shown = run(sys.executable, "-c", code, cwd=ROOT, PYTHONPATH=str(ROOT / "kernels"))
    assert shown.returncode == 0, shown.stderr
    assert "site-packages" in shown.stdout.split()[0]


def test_the_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "raft.__version__"}
    assert f"## {raft.__version__} " in (ROOT / "CHANGELOG.md").read_text()
    constraints = (ROOT / "scripts" / "constraints.txt").read_text().splitlines()
    install = runpy.run_path(str(ROOT / "scripts" / "install.py"))
    assert {"torch==2.13.0", "triton==3.7.1"} <= set(install["TORCH"]) & set(constraints)
    assert install["ENGINE"]["cpu"] in constraints


def test_an_installed_environment_is_left_alone():
    install = runpy.run_path(str(ROOT / "scripts" / "install.py"))
    if not install["STAMP"].exists():
        pytest.skip("this environment was not made by scripts/install.py")
    before = install["STAMP"].stat().st_mtime_ns
    python = install["VENV"] / "bin" / "python"
    shown = run(python.resolve(), ROOT / "scripts" / "install.py", cwd=ROOT)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "", "")
    assert install["STAMP"].stat().st_mtime_ns == before


def test_the_environment_is_renewed_when_what_decides_it_changes(monkeypatch, tmp_path):
    install = runpy.run_path(str(ROOT / "scripts" / "install.py"))
    for name in install["INPUTS"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    copied = runpy.run_path(str(tmp_path / "scripts" / "install.py"))
    prints = [copied["fingerprint"]("cpu"), copied["fingerprint"]("cuda")]
    for name in copied["INPUTS"]:
        with open(tmp_path / name, "a") as file:
            file.write("\n")
        prints.append(copied["fingerprint"]("cpu"))
    assert len(set(prints)) == len(prints) and install["fingerprint"]("cpu") not in prints
    assert not copied["usable"](tmp_path / "none") and copied["usable"](Path(sys.executable))


def test_the_oldest_versions_are_the_bounds_of_pyproject(tmp_path):
    """The script itself, with a Python that writes down what it is called with."""
    for name in ("pyproject.toml", "scripts/oldest.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\necho "$*" >>calls\nif [ "$2" = venv ]; then mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; fi\n'
    )
    python.chmod(0o755)
    script = tmp_path / "scripts" / "oldest.sh"

    shown = run("bash", script, cwd=tmp_path, PYTHON=str(tmp_path / "none"))
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr == f"scripts/oldest.sh: {tmp_path}/none is no Python 3.12; name one with PYTHON=path\n"

    assert run("bash", script, cwd=tmp_path, PYTHON=str(python)).returncode == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    installed = {word for call in calls if "pip install" in call for word in call.split() if "==" in word}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    for package in ("torch", "triton", "transformers", "accelerate", "sentence-transformers"):
        [requirement] = [found for found in declared if found.startswith(f"{package}>=")]
        assert requirement.split(",")[0].split(";")[0].replace(">=", "==") in installed
    assert calls[-1].startswith("-m pytest") and "tests/raft tests/kernels" in calls[-1]

    assert run("bash", script, "-k", "rows", cwd=tmp_path, PYTHON=str(tmp_path / "none")).returncode == 0
    again = (tmp_path / "calls").read_text().splitlines()[len(calls) :]
    assert again == [f"{calls[-1]} -k rows"]


@pytest.mark.parametrize(
    ("check", "test", "said", "passes"),
    [
        (0, 0, "31 passed, 2 skipped in 9.00s", True),
        (0, 0, "7 skipped in 1.00s", False),
        (0, 5, "no tests ran in 0.01s", False),
        (0, 1, "1 failed, 30 passed in 9.00s", False),
        (2, 0, "31 passed in 9.00s", False),
        (0, 139, "31 passed", False),
    ],
)
def test_ci_passes_only_what_passed(tmp_path, check, test, said, passes):
    """The script itself, with `make` replaced by a program that ends as told."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    make = tmp_path / "bin" / "make"
    make.parent.mkdir()
    make.write_text(f'#!/bin/sh\ncase $1 in check) exit {check};; test) echo "{said}"; exit {test};; esac\n')
    make.chmod(0o755)
    shown = run("bash", tmp_path / ".ci" / "run", cwd=tmp_path, PATH=f"{make.parent}:{os.environ['PATH']}")
    assert (shown.returncode == 0) is passes, shown.stdout
    assert "== make check" in shown.stdout and "== make test" in shown.stdout
