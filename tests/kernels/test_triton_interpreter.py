"""The Triton backend without a GPU: the files that test the library's contract run again, their kernels interpreted.

Whether kernels are interpreted is fixed when triton is imported, and other tests import it too: hence own processes.
"""

import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from raft_kernels import dispatch

pytest.importorskip("triton")
if dispatch.INTERPRETED:
    pytest.skip("kernels are interpreted in this process already", allow_module_level=True)

HERE = Path(__file__).parent
# The longest first, so that two processes end at the same time.
FILES = ["kernel_contract", "kernel_student", "kernel_topk", "triton_select", "triton_student", "kernel_oracle"]
FILES += ["kernel_metrics", "kernel_module", "kernel_errors"]


def pytest_interpreted(file: str) -> subprocess.CompletedProcess:
    """The interpreter warns of -inf - -inf in masked lanes."""
    options = ["-p", "no:cacheprovider", "-q", "-W", "ignore::RuntimeWarning"]
    threads = {"OPENBLAS_NUM_THREADS": "1"}  # of numpy, which does the interpreter's work
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(HERE / f"test_{file}.py")],
        env={**os.environ, **threads, "TRITON_INTERPRET": "1", "RAFT_KERNELS_BACKEND": "triton"},
        check=False,
        cwd=HERE.parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def runs(request):
    """The processes of the files that were asked for, two at a time."""
    wanted = [item.callspec.params["file"] for item in request.session.items if item.module is request.module]
    with ThreadPoolExecutor(2) as pool:
        yield {file: pool.submit(pytest_interpreted, file) for file in wanted}
        pool.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("file", FILES)
def test_contract_on_interpreted_kernels(runs: dict[str, Future], file):
    result = runs[file].result()
    assert result.returncode == 0, f"test_{file}.py under TRITON_INTERPRET=1:\n{result.stdout[-6000:]}"
