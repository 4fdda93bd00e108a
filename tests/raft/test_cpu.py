"""Threads that share a CPU: what is set before torch is imported."""

import os
import subprocess
import sys

import pytest

from raft import cpu


@pytest.fixture
def environment(monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cpu, "quota", lambda: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))  # what is set goes with it
    return os.environ


def test_threads_wait_for_a_moment_only(environment):
    cpu.share_cpu()
    assert environment["GOMP_SPINCOUNT"] == str(cpu.SPINS) and "OMP_NUM_THREADS" not in environment


@pytest.mark.parametrize("name, value", [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "active")])
def test_what_the_user_has_set_stays(environment, name, value):
    environment[name] = value
    cpu.share_cpu()
    assert environment[name] == value
    assert environment.get("GOMP_SPINCOUNT", "7") == "7"


def test_a_container_gets_as_many_threads_as_it_may_run(environment, monkeypatch):
    monkeypatch.setattr(cpu, "_cores", lambda: range(64))
    monkeypatch.setattr(cpu, "quota", lambda: 8)
    cpu.share_cpu()
    assert environment["OMP_NUM_THREADS"] == "8"


@pytest.mark.parametrize(
    "text, found", [("max 100000\n", None), ("250000 100000\n", 3), ("50000 100000\n", 1), ("broken", None)]
)
def test_quota_of_a_container(tmp_path, text, found):
    (tmp_path / "cpu.max").write_text(text)
    assert cpu.quota(tmp_path) == found


@pytest.mark.parametrize("quota, found", [("-1", None), ("400000", 4)])
def test_quota_of_an_old_container(tmp_path, quota, found):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu.quota(tmp_path) == found


def test_no_quota_without_control_groups(tmp_path):
    assert cpu.quota(tmp_path) is None


def test_commands_set_it_before_torch_is_there():
    """libgomp reads its environment once, when it is loaded."""
    look = """
import os, sys
from raft.cli import main
main(["report", "--run", "no-such-folder"])
assert "torch" not in sys.modules
print(os.environ["GOMP_SPINCOUNT"])
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == str(cpu.SPINS)
