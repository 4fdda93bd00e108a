"""pytest-benchmark suite on tiny sizes: `python -m pytest bench`. It guards that every provider runs and agrees."""

import pytest
import torch

from bench import providers

pytest.importorskip("pytest_benchmark")

NAMES = ["raft_kernels", "torch", "trl"]
LOSSES = providers.losses(NAMES, quick=True)


@pytest.fixture(scope="module", params=["randn", "zipf"])
def inputs(request):
    return providers.make_inputs(64, 32, 2048, 32, torch.float32, "cpu", request.param)


@pytest.mark.parametrize("name", providers.topk(NAMES))
def test_linear_topk(benchmark, inputs, name):
    benchmark.pedantic(providers.topk(NAMES)[name], (inputs,), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("name", LOSSES)
def test_linear_topk_kl(benchmark, inputs, name):
    parameters = (inputs.student_hidden, inputs.student_weight)
    loss = LOSSES[name]
    benchmark.pedantic(lambda: torch.autograd.grad(loss(inputs), parameters), rounds=5, warmup_rounds=1)
    if name != "trl":
        torch.testing.assert_close(loss(inputs), providers.reference_loss(inputs), rtol=1e-4, atol=1e-6)
