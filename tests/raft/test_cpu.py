"""Threads that share a CPU: what is set before torch is imported."""

import os
import subprocess
import sys
from unittest import mock

import pytest

from raft import cpu


@pytest.fixture
def environment():
    with mock.patch.dict(os.environ):
        for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS"):
            os.environ.pop(name, None)
        yield os.environ


def test_threads_wait_for_a_moment_only(environment, tmp_path):
    cpu.share_cpu(tmp_path)
    assert environment["GOMP_SPINCOUNT"] == str(cpu.SPINS) and "OMP_NUM_THREADS" not in environment


@pytest.mark.parametrize("name, value", [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "active")])
def test_what_the_user_has_set_stays(environment, tmp_path, name, value):
    environment[name] = value
    cpu.share_cpu(tmp_path)
    assert environment[name] == value
    assert environment.get("GOMP_SPINCOUNT", "7") == "7"


def test_a_container_gets_as_many_threads_as_it_may_run(environment, tmp_path):
    (tmp_path / "cpu.max").write_text("800000 100000\n")
    cpu.share_cpu(tmp_path, cores=64)
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
