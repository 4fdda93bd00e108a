"""Configurations of the Triton kernels: what is refused, and why."""

import re
from dataclasses import replace

import pytest
import torch

from bench.kernels import tune
from raft_kernels.gpu import tiles
from raft_kernels.gpu.tiles import ProjectConfig, StudentProductConfig

CHIPS = (0, 80, 86, 89, 90, 100, 120)
PRODUCT = StudentProductConfig(BLOCK_N=128, BLOCK_U=256, BLOCK_H=64, num_warps=8, num_stages=4)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("BLOCK_N", 96, "BLOCK_N must be a power of two"),
        ("BLOCK_N", 8, "BLOCK_N must be at least 16, the smallest side of a tensor-core product"),
        ("BLOCK_H", "64", "BLOCK_H must be an integer of at least 1"),
        ("num_warps", 64, "num_warps must be at most 32, the 1,024 threads of a program"),
        ("num_stages", 0, "num_stages must be an integer of at least 1"),
    ],
)
def test_a_value_that_no_kernel_can_have_is_refused(field, value, reason):
    with pytest.raises(ValueError, match=rf"^StudentProductConfig\(.*{field}={value!r}.*\): {re.escape(reason)}$"):
        replace(PRODUCT, **{field: value})


def test_blocks_of_the_fused_product_hold_groups_and_fit_a_descriptor():
    with pytest.raises(ValueError, match="BLOCK_V must be at least 128"):
        ProjectConfig(128, 64, 64, 8, 3)
    with pytest.raises(ValueError, match="a block must be at most 256"):
        ProjectConfig(128, 512, 64, 8, 3)


def test_what_a_chip_has_no_room_for_is_refused():
    with tiles.use_tiles(PRODUCT):
        assert tiles.tiles_for(StudentProductConfig, torch.bfloat16, chip=90) == PRODUCT
        with pytest.raises(ValueError, match=r"147456 bytes of shared memory or more; sm_86 has 101376$"):
            tiles.tiles_for(StudentProductConfig, torch.bfloat16, chip=86)
    with tiles.use_tiles(replace(PRODUCT, num_warps=4)):
        with pytest.raises(ValueError, match=r"32768 sums do not fit sm_90, which holds 32640 for 4 warps$"):
            tiles.tiles_for(StudentProductConfig, torch.bfloat16, chip=90)
        # Sums have a memory of their own there; what is kept from fp32 tensors is not reconfigured.
        assert tiles.tiles_for(StudentProductConfig, torch.bfloat16, chip=100).num_warps == 4
        assert tiles.tiles_for(StudentProductConfig, torch.bfloat16, wide=True, chip=90).num_warps == 8


@pytest.mark.parametrize("chip", CHIPS)
def test_what_ships_is_refused_on_no_chip(chip):
    for kernel, kind in tiles.SHIPPED:
        operands = torch.bfloat16 if kind in ("half", "wide") else torch.float32
        precision = kind if kind == "tf32" else "ieee"
        assert isinstance(tiles.tiles_for(kernel, operands, precision, wide=kind == "wide", chip=chip), kernel)


def test_every_configuration_of_the_tuning_space_fits_an_h200():
    assert set(tune.SPACE) == set(tiles.TUNED)
    for kernel, configs in tune.SPACE.items():
        for config in configs:
            assert isinstance(config, tiles.TUNED[kernel])
            config.check(90, 2)


def test_the_fused_product_can_be_turned_on_and_off():
    on_this_chip = tiles.has_fused_product()
    with tiles.use_tiles(fused=True):
        assert tiles.has_fused_product()
        with tiles.use_tiles(fused=False):
            assert not tiles.has_fused_product()
        with tiles.use_tiles(ProjectConfig(128, 128, 64, 8, 4), fused=False):
            assert not tiles.has_fused_product()
    assert tiles.has_fused_product() == on_this_chip
