"""The loss library alone: `pip install ./kernels` into an empty folder, and README's example with torch only."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import raft
import raft_kernels

ROOT = Path(__file__).parents[2]

# What the README's first example takes as given, and what its result must be.
BEFORE = """
import sys
from types import SimpleNamespace

sys.modules["raft"] = None  # importing it fails, should the environment have it
import torch

teacher_hidden, student_hidden = torch.randn(3, 16), torch.randn(3, 8, requires_grad=True)
teacher_head = SimpleNamespace(weight=torch.randn(600, 16))
student_head = SimpleNamespace(weight=torch.randn(600, 8, requires_grad=True))
"""
AFTER = """
import raft_kernels

assert loss.shape == (3,) and loss.isfinite().all() and (loss > 0).all()
assert student_hidden.grad.abs().sum() > 0 and student_head.weight.grad.abs().sum() > 0
print(raft_kernels.__file__)
"""


def run(*command: object, **environment: str) -> str:
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    shown = list(map(str, command))
    done = subprocess.run(shown, check=False, capture_output=True, text=True, env=plain | environment, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Built from a copy: setuptools leaves its build folder beside the sources."""
    pytest.importorskip("pip")
    pytest.importorskip("setuptools")
    sources, target = tmp_path_factory.mktemp("sources") / "kernels", tmp_path_factory.mktemp("environment")
    shutil.copytree(ROOT / "kernels", sources, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    options = ["-q", "--no-deps", "--no-build-isolation", "--no-index", "--no-compile"]
    run(sys.executable, "-m", "pip", "install", *options, "--target", target, sources)
    return target


def test_every_module_is_installed_and_nothing_else(installed):
    [metadata] = installed.glob("*.dist-info")
    assert metadata.name == f"raft_kernels-{raft_kernels.__version__}.dist-info"
    assert {path.name for path in installed.iterdir()} == {"raft_kernels", metadata.name}
    for pattern in ("*.py", "py.typed"):
        files = {path.relative_to(ROOT / "kernels") for path in (ROOT / "kernels" / "raft_kernels").rglob(pattern)}
        assert files == {path.relative_to(installed) for path in installed.rglob(pattern)}
    text = (metadata / "METADATA").read_text()
    assert "Requires-Dist: torch>=2.11\n" in text and "Requires-Dist: triton>=3.6;" in text
    assert "Apache License" in (metadata / "licenses" / "LICENSE").read_text()


def test_the_readmes_example_runs_on_torch_alone(installed, tmp_path):
    """-S and the path: no .pth file of the environment adds the checkout."""
    readme = (ROOT / "kernels" / "README.md").read_text()
    example = readme.split("```python\n")[1].split("```")[0]
    assert "linear_topk" in example and "backward()" in example
    script = tmp_path / "example.py"
    script.write_text(BEFORE + example + AFTER)
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    path = os.pathsep.join([str(installed), *packages])
    shown = run(sys.executable, "-S", script, PYTHONPATH=path)
    assert shown.strip() == str(installed / "raft_kernels" / "__init__.py")


def test_its_version_and_bounds_are_those_of_the_whole_project():
    alone = tomllib.loads((ROOT / "kernels" / "pyproject.toml").read_text())["project"]
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert raft_kernels.__version__ == raft.__version__
    assert set(alone["dependencies"]) <= {*whole["dependencies"], *whole["optional-dependencies"]["test"]}
    for field in ("requires-python", "license", "dynamic"):
        assert alone[field] == whole[field]
