import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors are faster on one thread, and the tests leave other processes their cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
