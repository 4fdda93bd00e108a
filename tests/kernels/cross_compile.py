"""Compiles Triton kernels for GPUs that are not here, and reads what the assembler says of them.

Run as a script it prints the table of all shipped configurations: python tests/kernels/cross_compile.py [sm_90]
"""

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from raft_kernels.divergence import DIVERGENCES
from raft_kernels.gpu import divergence, project, scatter, select, student, tiles, union

CHIPS = (80, 90, 100)
# What one program can use, in bytes.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# The tensor-core instruction of each chip, in PTX.
TENSOR_CORE = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
POINTER = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@dataclass(frozen=True)
class Variant:
    """A kernel as it is launched at a size that occurs: signature of its arguments, constants, launch options."""

    name: str
    kernel: triton.JITFunction
    types: dict[str, str]  # of the arguments that are not constants
    constants: dict[str, object]
    options: dict[str, int]
    tensor_cores: bool = False


@dataclass(frozen=True)
class Compiled:
    shared: int  # bytes
    registers: int  # per thread
    local: int  # bytes per thread in local memory: spills and arrays that did not fit registers
    ptx: str


def variant(
    name: str, kernel, types: dict[str, str], constants: dict, config: tiles.TileConfig, tensor_cores=False
) -> Variant:
    options = {key: value for key, value in vars(config).items() if key in ("num_warps", "num_stages")}
    blocks = {key: value for key, value in vars(config).items() if key in kernel.arg_names}
    return Variant(name, kernel, types, {**blocks, **constants}, options, tensor_cores)


def products(chip: int) -> list[Variant]:
    """Of bf16, fp16 and fp32 tensors, and of fp32 tensors under autocast."""
    half = (torch.bfloat16, torch.float16)
    stored = [(dtype, dtype) for dtype in (*half, torch.float32)] + [(dtype, torch.float32) for dtype in half]
    return [v for operands, tensors in stored for v in products_of(operands, tensors, chip)]


def products_of(operands: torch.dtype, stored: torch.dtype, chip: int) -> list[Variant]:
    p, cores = POINTER[stored], operands != torch.float32
    name = f"{operands} of {stored}"
    sizes = dict.fromkeys(("n", "h", "capacity", "width", "tiles", "stride_xn", "stride_wv"), "i32")
    types = {"x": p, "w": p, "ids": "*i32", "sizes": "*i32", "y": "*fp32", **sizes}
    constants = {"stride_xh": 1, "stride_wh": 1, "OPERAND": student.TRITON_DTYPE[operands], "LONG": False}
    product = tiles.tiles_for(tiles.StudentProductConfig, operands, wide=stored.itemsize > operands.itemsize, chip=chip)
    found = [
        variant(f"product {name} {label}", student.product_kernel, types, {**constants, "EVEN_H": even}, product, cores)
        for label, even in (("even", True), ("odd", False))
    ]

    operand, precision = student.gradient_operand(operands)
    d, wide = POINTER[operand], stored.itemsize > operand.itemsize
    constants = {"OPERAND": student.TRITON_DTYPE[operand], "PRECISION": precision, "LONG": False}
    sizes = dict.fromkeys(("n", "h", "capacity", "width", "tiles", "stride_wv"), "i32")
    types = {"d": d, "w": p, "ids": "*i32", "sizes": "*i32", "dx": p, **sizes}
    hidden = tiles.tiles_for(tiles.HiddenGradientConfig, operand, precision, wide=wide, chip=chip)
    by_hidden = {**constants, "stride_wh": 1}
    kernel = student.hidden_gradient_kernel
    found.append(variant(f"hidden_gradient {name}", kernel, types, by_hidden, hidden, cores))

    types = {
        "columns": "*i32",
        "dy": "*fp32",
        "d": d,
        "sizes": "*i32",
        **dict.fromkeys(("k", "capacity", "width"), "i32"),
    }
    blocks = {"TILE": hidden.BLOCK_N, "BLOCK_U": hidden.BLOCK_U}
    columns = tiles.ScatterColumnsConfig()
    found.append(variant(f"scatter_columns {name}", scatter.scatter_columns_kernel, types, blocks, columns))

    sizes = dict.fromkeys(("n", "h", "width", "rows", "tiles", "stride_xn"), "i32")
    types = {"d": d, "x": p, "tokens": "*i32", "sizes": "*i32", "order": "*i32", "dw": p, **sizes}
    weight = tiles.tiles_for(tiles.WeightGradientConfig, operand, precision, wide=wide, chip=chip)
    by_weight = {**constants, "stride_xh": 1}
    kernel = student.weight_gradient_kernel
    found.append(variant(f"weight_gradient {name}", kernel, types, by_weight, weight, cores))

    types = {"places": "*i32", "dy": "*fp32", "d": d, "used": "*i1"}
    types |= dict.fromkeys(("n", "k", "first", "width"), "i32")
    blocks = {"BLOCK_V": weight.BLOCK_V}
    scattered = tiles.ScatterTilesConfig()
    found.append(variant(f"scatter_tiles {name}", scatter.scatter_tiles_kernel, types, blocks, scattered))
    return found


def selections() -> list[Variant]:
    found = []
    for vocab, k in ((32000, 512), (128256, 64), (128256, 512), (151936, 512), (200064, 1024), (262144, 512)):
        g = select.group_size(vocab, k)
        types = {"z": "*fp32", "maxima": "*i32", "partial": "*fp32", "stride_z": "i32", "vocab": "i32"}
        types |= {"groups": "i32", "blocks": "i32", "inverse_temperature": "fp32"}
        maxima = tiles.GroupMaximaConfig()
        block = {"BLOCK_G": maxima.ELEMENTS // g, "G": g, "MAXIMA": True}
        for partition in (False, True):
            name = f"group_maxima V={vocab} G={g} {'with' if partition else 'without'} partition"
            found.append(variant(name, select.group_maxima_kernel, types, {**block, "PARTITION": partition}, maxima))
        types = {
            "z": "*fp32",
            "groups": "*i32",
            "keys": "*i32",
            **dict.fromkeys(("stride_z", "vocab", "k", "blocks"), "i32"),
        }
        candidates = tiles.CandidatesConfig()
        found.append(variant(f"candidates G={g}", select.candidates_kernel, types, {"G": g}, candidates))
    for lanes in (1024, 2048, 4096, 8192, 16384, select.MAX_LANES):
        types = {"keys": "*i32", "chosen": "*i32", "z": "*fp32", "groups": "*i32", "logits": "*fp32"}
        types |= dict.fromkeys(("m", "k", "stride_z"), "i32")
        config = tiles.ChooseConfig.of_lanes(lanes)
        for g, final in ((1, False), (1, True), (16, True)):
            constants = {"LANES": lanes, "G": g, "FINAL": final}
            name = f"choose {lanes} G={g}{' final' if final else ''}"
            found.append(variant(name, select.choose_kernel, types, constants, config))
    return found


def lists() -> list[Variant]:
    types = {"used": "*i1", "members": "*i32", "sizes": "*i32", "places": "*i32"}
    types |= dict.fromkeys(("m", "stride", "capacity"), "i32")
    compact = tiles.CompactConfig()
    found = [
        variant(f"compact {label} places", union.compact_kernel, types, {"PLACES": places}, compact)
        for label, places in (("without", False), ("with", True))
    ]
    types = {"y": "*fp32", "columns": "*i32", "mask": "*i1", "found": "*fp32"}
    types |= dict.fromkeys(("k", "capacity", "width"), "i32")
    pick = tiles.PickColumnsConfig()
    return found + [
        variant(f"pick_columns {label} mask", scatter.pick_columns_kernel, types, {"MASK": mask}, pick)
        for label, mask in (("without", False), ("with", True))
    ]


def divergences() -> list[Variant]:
    types = {"z": "*fp32", "t": "*fp32", "loss": "*fp32", "gradient": "*fp32", "c": "i32"}
    types |= dict.fromkeys(("inverse_temperature", "inverse_teacher_temperature", "beta", "scale"), "fp32")
    return [
        variant(
            f"divergence {name} {lanes}",
            divergence.divergence_kernel,
            types,
            {"DIVERGENCE": name, "LANES": lanes},
            tiles.DivergenceConfig.of_lanes(lanes),
        )
        for name in DIVERGENCES
        for lanes in (64, 512, 1024, divergence.MAX_CLASSES)
    ]


def projections(chip: int) -> list[Variant]:
    found = []
    for dtype, element in ((torch.bfloat16, "bf16"), (torch.float16, "fp16")):
        config = tiles.tiles_for(tiles.ProjectConfig, dtype, chip=chip)
        types = {
            "x": f"tensordesc<{element}[{config.BLOCK_N}, {config.BLOCK_H}]>",
            "w": f"tensordesc<{element}[{config.BLOCK_V}, {config.BLOCK_H}]>",
            "bias": POINTER[dtype],
            "z": "*fp32",
            "maxima": "*i32",
            **dict.fromkeys(("n", "vocab", "h", "groups", "stride_z"), "i32"),
            "logit_scale": "fp32",
        }
        for g, bias in ((16, False), (32, True)):
            constants = {"G": g, "BIAS": bias, "PROGRAMS": 132}
            name = f"project {dtype} G={g}{' bias' if bias else ''}"
            found.append(variant(name, project.project_kernel, types, constants, config, True))
    return found


def variants(chip: int) -> list[Variant]:
    return [
        *products(chip),
        *lists(),
        *selections(),
        *divergences(),
        *(projections(chip) if chip >= 90 else []),
    ]


def compile_for(v: Variant, chip: int) -> Compiled:
    names = [p.name for p in v.kernel.params]
    signature = {name: v.types.get(name, "constexpr") for name in names}
    missing = [name for name in names if name not in v.types and name not in v.constants]
    assert not missing, f"{v.name}: no type or constant for {missing}"
    # Pointers and sizes are multiples of 16 at every size that a model has; tiles and counts need not be.
    aligned = [
        n
        for n in names
        if v.types.get(n, "").startswith("*") or n in ("h", "stride_xn", "stride_wv", "stride_z", "width")
    ]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(fn=v.kernel, signature=signature, constexprs=v.constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", chip, 32), options=v.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.check_output([CUOBJDUMP, "--dump-resource-usage", file.name], text=True)
    registers, stack, local = (int(re.findall(rf"\b{word}:(\d+)", usage)[-1]) for word in ("REG", "STACK", "LOCAL"))
    return Compiled(compiled.metadata.shared, registers, stack + local, compiled.asm["ptx"])


def main() -> None:
    chips = [int(word.removeprefix("sm_")) for word in sys.argv[1:]] or CHIPS
    for chip in chips:
        for v in variants(chip):
            try:
                c = compile_for(v, chip)
            except Exception as error:  # noqa: BLE001
                print(f"sm_{chip} {v.name:52} FAILED {type(error).__name__}: {str(error)[:300]}")
                continue
            core = TENSOR_CORE[chip] in c.ptx
            print(
                f"sm_{chip} {v.name:52} registers {c.registers:3} local {c.local:4} shared {c.shared / 1024:6.1f} KiB "
                f"warps {v.options.get('num_warps', 4):2} {TENSOR_CORE[chip] if core else '-'}"
            )


if __name__ == "__main__":
    main()
