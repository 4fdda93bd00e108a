"""Tile sizes, warps and pipeline stages of every kernel, per dtype of its operands and per chip.

All of them compile for sm_80, sm_90 and sm_100 without spills (tests/kernels/test_triton_compile.py). A configuration is
fixed, never timed at run time: sums keep their order, and so results their bits, from run to run.
"""

import functools
from typing import Any

import torch

Config = dict[str, Any]


def _tile(num_warps: int, num_stages: int, **blocks: int) -> Config:
    return {**blocks, "num_warps": num_warps, "num_stages": num_stages}


# The gradients' loops load ids, then what they point to: every second stage is one more buffer in flight, so 5 are 3.
# By kind of product: "half" for bf16 and fp16, "wide" for these from fp32 tensors (autocast), "tf32" for gradients of
# fp16, "ieee" for fp32.
SHIPPED: dict[tuple[str, str], Config] = {
    ("product", "half"): _tile(8, 4, BLOCK_N=128, BLOCK_U=256, BLOCK_H=64),
    ("hidden_gradient", "half"): _tile(8, 5, BLOCK_N=128, BLOCK_U=64, BLOCK_H=256),
    ("weight_gradient", "half"): _tile(4, 5, BLOCK_V=64, BLOCK_N=64, BLOCK_H=128, GROUP_H=8),
    ("product", "wide"): _tile(8, 3, BLOCK_N=128, BLOCK_U=128, BLOCK_H=32),
    ("hidden_gradient", "wide"): _tile(8, 3, BLOCK_N=128, BLOCK_U=32, BLOCK_H=128),
    ("weight_gradient", "wide"): _tile(8, 3, BLOCK_V=128, BLOCK_N=32, BLOCK_H=128, GROUP_H=8),
    ("project", "half"): _tile(8, 3, BLOCK_N=128, BLOCK_V=256, BLOCK_H=64),
    ("hidden_gradient", "tf32"): _tile(8, 3, BLOCK_N=128, BLOCK_U=32, BLOCK_H=128),
    ("weight_gradient", "tf32"): _tile(8, 3, BLOCK_V=128, BLOCK_N=32, BLOCK_H=128, GROUP_H=8),
    ("product", "ieee"): _tile(8, 3, BLOCK_N=64, BLOCK_U=128, BLOCK_H=32),
    ("hidden_gradient", "ieee"): _tile(8, 3, BLOCK_N=64, BLOCK_U=32, BLOCK_H=64),
    ("weight_gradient", "ieee"): _tile(8, 3, BLOCK_V=64, BLOCK_N=32, BLOCK_H=64, GROUP_H=16),
}
# Chips whose tensor cores take operands and sums from registers (mma.sync: Ampere, Ada, consumer Blackwell) have fewer
# registers left for a tile, and the consumer ones less than half the shared memory.
REGISTER_TILES: dict[tuple[str, str], Config] = {
    ("product", "half"): _tile(8, 3, BLOCK_N=128, BLOCK_U=128, BLOCK_H=64),
}
# The sums of tcgen05 come out of their own memory through more registers than wgmma's need.
TENSOR_MEMORY_TILES: dict[tuple[str, str], Config] = {
    ("project", "half"): _tile(8, 4, BLOCK_N=128, BLOCK_V=128, BLOCK_H=64),
}


@functools.cache
def capability() -> int:
    """80, 90, 100, ...; 0 where kernels are interpreted."""
    if not torch.cuda.is_available():
        return 0
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def launch(
    kernel: str,
    operands: torch.dtype = torch.float32,
    precision: str = "ieee",
    *,
    wide: bool = False,
    lanes: int = 0,
    chip: int | None = None,
) -> Config:
    """Keyword arguments of a launch. `wide`: operands come from tensors of a wider dtype. `lanes`: entries that one
    program holds in registers."""
    if kernel == "choose":
        return {"BLOCK": min(lanes, 2048), "num_warps": 8 if lanes > 2048 else 4}
    if kernel == "divergence":
        return {"num_warps": max(1, min(16, lanes // 256))}
    if kernel == "group_maxima":
        return {"ELEMENTS": 4096, "num_warps": 4}
    if kernel == "candidates":
        return {"BLOCK_K": 64, "num_warps": 4}
    if kernel == "compact":
        return {"BLOCK": 4096, "num_warps": 8}
    if kernel == "pick_columns":
        return {"BLOCK_K": 512, "num_warps": 4}
    if kernel == "scatter_columns":
        return {"BLOCK_K": 512, "ZEROS": 2048, "num_warps": 4}
    if kernel == "scatter_tiles":
        return {"BLOCK_K": 64, "num_warps": 4}
    half = operands in (torch.bfloat16, torch.float16)
    kind = "wide" if half and wide else "half" if half else precision
    chip = capability() if chip is None else chip
    own = REGISTER_TILES if 0 < chip < 90 or chip >= 120 else TENSOR_MEMORY_TILES if chip >= 100 else {}
    return dict(own.get((kernel, kind), SHIPPED[kernel, kind]))
