"""pytest-benchmark suite on a tiny case: `python -m pytest bench`. It guards that every provider runs and agrees."""

from dataclasses import replace

import pytest
import torch

from bench.kernels import cases, providers
from bench.kernels.check import Reference

pytest.importorskip("pytest_benchmark")

NAMES = ["raft_kernels", "torch", "gemm+topk", "trl", "liger_jsd"]
PASSES = providers.OPS | providers.CROSS_ENTROPY_OPS
PROVIDERS, _ = providers.make(NAMES, "cpu", quick=True)
PAIRS = [pytest.param(provider, op, id=f"{provider.name}-{op}") for provider in PROVIDERS for op in provider.ops]


@pytest.fixture(scope="module", params=cases.REGIMES)
def inputs(request):
    return cases.make_inputs(replace(cases.QUICK, regime=request.param), "cpu")


@pytest.mark.parametrize(("provider", "op"), PAIRS)
def test_kernels(benchmark, inputs, provider, op):
    call = provider.ops[op](inputs)
    if provider.loss == providers.TOP_K:
        Reference(inputs).check(op, call)

    def whole():
        found = call()
        return found if "full" not in PASSES[op] else torch.autograd.grad(found.mean(), inputs.parameters)

    benchmark.pedantic(whole, rounds=5, warmup_rounds=1)
