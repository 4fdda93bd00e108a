"""Every configuration that ships, compiled for chips that are not here: what no GPU in reach would tell."""

from dataclasses import replace

import pytest
import torch

from raft_kernels import dispatch

pytest.importorskip("triton")
if dispatch.INTERPRETED:
    pytest.skip("kernels are interpreted in this process: nothing compiles", allow_module_level=True)

from cross_compile import CHIPS, SHARED_LIMIT, TENSOR_CORE, Variant, compile_for, products_of, projections, variants

from bench.kernels import tune
from bench.kernels.variants import using

MAX_REGISTERS = 255


def faults(v: Variant, chip: int) -> list[str]:
    """What keeps a kernel from running well, or at all, on a chip."""
    c = compile_for(v, chip)
    found = {
        f"{c.local} bytes a thread spilled to local memory": c.local > 0,
        f"{c.shared} bytes of shared memory, of {SHARED_LIMIT[chip]}": c.shared > SHARED_LIMIT[chip],
        f"{c.registers} registers": c.registers > MAX_REGISTERS,
        f"no {TENSOR_CORE[chip]}": v.tensor_cores and TENSOR_CORE[chip] not in c.ptx,
    }
    return [f"{v.name}: {fault}" for fault, there in found.items() if there]


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
def test_every_configuration_fits(chip):
    shipped = variants(chip)
    assert {v.kernel.fn.__name__ for v in shipped} == {
        "product_kernel",
        "hidden_gradient_kernel",
        "weight_gradient_kernel",
        "compact_kernel",
        "pick_columns_kernel",
        "scatter_columns_kernel",
        "scatter_tiles_kernel",
        "group_maxima_kernel",
        "candidates_kernel",
        "choose_kernel",
        "divergence_kernel",
        *(["project_kernel"] if chip >= 90 else []),
    }
    assert [fault for v in shipped for fault in faults(v, chip)] == []


@pytest.mark.slow
@pytest.mark.parametrize("kernel", tune.SPACE)
def test_the_tuning_space_fits_an_h200(kernel):
    """What `python -m bench tune` tries there: a configuration that spills would only cost device time."""
    found = []
    for config in tune.SPACE[kernel]:
        with using({kernel: vars(config)}):
            shipped = projections(90) if kernel == "project" else products_of(torch.bfloat16, torch.bfloat16, 90)
            v = next(v for v in shipped if v.name.startswith(kernel))
        found += [f"{config}: {fault}" for fault in faults(v, 90)]
    assert found == []


def changed(chip: int, name: str, constants: dict | None = None, **options) -> Variant:
    v = next(v for v in variants(chip) if v.name.startswith(name))
    return replace(v, constants={**v.constants, **(constants or {})}, options={**v.options, **options})


@pytest.mark.parametrize("chip", CHIPS)
def test_what_does_not_fit_is_seen(chip):
    too_deep = faults(changed(chip, "product torch.bfloat16", num_stages=9), chip)
    assert any("shared memory" in fault for fault in too_deep)
    too_wide = faults(changed(chip, "divergence forward 8192", num_warps=2), chip)
    assert any("spilled" in fault for fault in too_wide)
    no_cores = replace(changed(chip, "divergence forward 64"), tensor_cores=True)
    assert any(TENSOR_CORE[chip] in fault for fault in faults(no_cores, chip))
