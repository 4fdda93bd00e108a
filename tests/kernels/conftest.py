import sys
from pathlib import Path

import pytest
import torch

from raft_kernels import dispatch

# The folder of `bench`, also for a plain `pytest`.
sys.path.insert(0, str(Path(__file__).parents[2]))


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors are faster on one thread, and the tests leave other processes their cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["dense", "union" if dispatch.INTERPRETED else "sparse"])
def way(request):
    """How the student's logits are computed: by products with the whole head, or from the rows that are needed."""
    with dispatch.use_dense(request.param == "dense"):
        yield request.param
