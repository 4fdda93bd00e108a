"""Tile sizes, warps and pipeline stages: one class a kernel, and what ships by dtype of the operands and by chip.

All of it compiles for sm_80, sm_90 and sm_100 without spills (tests/kernels/test_triton_compile.py). A configuration is
fixed, never timed at run time, so that sums keep their order, and results their bits, from run to run.

Fields have the names of the kernel's constants and launch options: a launch takes `**vars(config)`. Values that a
kernel cannot have are refused when a configuration is made; tiles that a chip has no room for, when they are chosen
for it.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch

# Shared memory that one program can use, in bytes, by compute capability. Chips that are not listed are not checked.
SHARED_MEMORY = {
    **dict.fromkeys((80, 87), 163 * 1024),
    **dict.fromkeys((86, 89, 120, 121), 99 * 1024),
    **dict.fromkeys((90, 100, 103), 227 * 1024),
}
THREADS_OF_A_WARP, REGISTERS_OF_A_THREAD = 32, 255
# fp32 sums that the tensor memory of sm_100 holds for one program.
TENSOR_MEMORY_SUMS = 128 * 512


def has_tensor_memory(chip: int) -> bool:
    """Whether sums of tcgen05 (data-center Blackwell) lie in a memory of their own, not in registers."""
    return 100 <= chip < 120


@dataclass(frozen=True)
class TileConfig:
    """Launch options of one kernel: integers of at least 1, and powers of two but for `num_stages`."""

    def __post_init__(self) -> None:
        for field, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{self}: {field} must be an integer of at least 1")
            if field != "num_stages" and value & (value - 1):
                raise ValueError(f"{self}: {field} must be a power of two")
            if field == "num_warps" and value > 32:
                raise ValueError(f"{self}: num_warps must be at most 32, the 1,024 threads of a program")


@dataclass(frozen=True)
class ProductConfig(TileConfig):
    """Of a kernel that multiplies tiles: ROWS x COLUMNS sums over blocks of DEPTH, each of them the name of a field."""

    name: ClassVar[str]
    ROWS: ClassVar[str]
    COLUMNS: ClassVar[str]
    DEPTH: ClassVar[str]
    # The gradients' loops load ids, then the rows that the ids point to: one more buffer in flight takes two stages.
    STAGES_OF_A_BUFFER: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in (self.ROWS, self.COLUMNS, self.DEPTH):
            if vars(self)[field] < 16:
                raise ValueError(f"{self}: {field} must be at least 16, the smallest side of a tensor-core product")

    def check(self, chip: int, operand_bytes: int) -> None:
        """Raises ValueError if the chip (80, 90, ...; 0 for the interpreter) has no room for the tiles.

        operand_bytes: of one number of the narrower operand. Counts what the compiler needs at the least.
        """
        rows, columns, depth = (vars(self)[field] for field in (self.ROWS, self.COLUMNS, self.DEPTH))
        warps, stages = vars(self)["num_warps"], vars(self)["num_stages"]
        registers = warps * THREADS_OF_A_WARP * REGISTERS_OF_A_THREAD
        sums = TENSOR_MEMORY_SUMS if has_tensor_memory(chip) else registers
        if chip and rows * columns > sums:
            raise ValueError(
                f"{self}: {rows * columns} sums do not fit sm_{chip}, which holds {sums} for {warps} warps"
            )
        buffers = max(1, (stages - 1) // self.STAGES_OF_A_BUFFER)
        shared, limit = buffers * (rows + columns) * depth * operand_bytes, SHARED_MEMORY.get(chip)
        if limit is not None and shared > limit:
            raise ValueError(f"{self}: {shared} bytes of shared memory or more; sm_{chip} has {limit}")


@dataclass(frozen=True)
class StudentProductConfig(ProductConfig):
    """Of student.product_kernel: BLOCK_N tokens, BLOCK_U of their ids, BLOCK_H columns of the head at a time."""

    name, ROWS, COLUMNS, DEPTH = "product", "BLOCK_N", "BLOCK_U", "BLOCK_H"
    BLOCK_N: int
    BLOCK_U: int
    BLOCK_H: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class HiddenGradientConfig(ProductConfig):
    """Of student.hidden_gradient_kernel: BLOCK_N tokens, BLOCK_H columns, BLOCK_U ids at a time."""

    name, ROWS, COLUMNS, DEPTH = "hidden_gradient", "BLOCK_N", "BLOCK_H", "BLOCK_U"
    STAGES_OF_A_BUFFER = 2
    BLOCK_N: int
    BLOCK_U: int
    BLOCK_H: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class WeightGradientConfig(ProductConfig):
    """Of student.weight_gradient_kernel: BLOCK_V ids, BLOCK_H columns, BLOCK_N tokens at a time.

    GROUP_H programs that follow one another take the same ids, and different columns.
    """

    name, ROWS, COLUMNS, DEPTH = "weight_gradient", "BLOCK_V", "BLOCK_H", "BLOCK_N"
    STAGES_OF_A_BUFFER = 2
    BLOCK_V: int
    BLOCK_N: int
    BLOCK_H: int
    GROUP_H: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class ProjectConfig(ProductConfig):
    """Of project.project_kernel: BLOCK_N tokens, BLOCK_V ids, BLOCK_H columns of the head at a time."""

    name, ROWS, COLUMNS, DEPTH = "project", "BLOCK_N", "BLOCK_V", "BLOCK_H"
    BLOCK_N: int
    BLOCK_V: int
    BLOCK_H: int
    num_warps: int
    num_stages: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if max(self.BLOCK_N, self.BLOCK_V, self.BLOCK_H) > 256:
            raise ValueError(f"{self}: a block must be at most 256, the longest side that a tensor descriptor loads")
        if self.BLOCK_V < 128:
            raise ValueError(f"{self}: BLOCK_V must be at least 128, two halves that each hold a group of up to 64 ids")


@dataclass(frozen=True)
class GroupMaximaConfig(TileConfig):
    """Of select.group_maxima_kernel: ELEMENTS logits a program."""

    ELEMENTS: int = 4096
    num_warps: int = 4


@dataclass(frozen=True)
class CandidatesConfig(TileConfig):
    """Of select.candidates_kernel: BLOCK_K groups a program."""

    BLOCK_K: int = 64
    num_warps: int = 4


@dataclass(frozen=True)
class ChooseConfig(TileConfig):
    """Of select.choose_kernel: BLOCK keys of the row at a time in the last pass."""

    BLOCK: int
    num_warps: int

    @classmethod
    def of_lanes(cls, lanes: int) -> "ChooseConfig":
        """lanes: keys that one program holds in registers."""
        return cls(min(lanes, 2048), 8 if lanes > 2048 else 4)


@dataclass(frozen=True)
class CompactConfig(TileConfig):
    """Of union.compact_kernel: BLOCK ids at a time."""

    BLOCK: int = 4096
    num_warps: int = 8


@dataclass(frozen=True)
class PickColumnsConfig(TileConfig):
    """Of scatter.pick_columns_kernel: BLOCK_K entries of a token at a time."""

    BLOCK_K: int = 512
    num_warps: int = 4


@dataclass(frozen=True)
class ScatterColumnsConfig(TileConfig):
    """Of scatter.scatter_columns_kernel: BLOCK_K entries of a token, and ZEROS zeros, at a time."""

    BLOCK_K: int = 512
    ZEROS: int = 2048
    num_warps: int = 4


@dataclass(frozen=True)
class ScatterTilesConfig(TileConfig):
    """Of scatter.scatter_tiles_kernel: BLOCK_K entries of a token at a time."""

    BLOCK_K: int = 64
    num_warps: int = 4


@dataclass(frozen=True)
class DivergenceConfig(TileConfig):
    """Of divergence.divergence_kernel."""

    num_warps: int

    @classmethod
    def of_lanes(cls, lanes: int) -> "DivergenceConfig":
        """lanes: classes that one program holds in registers."""
        return cls(max(1, min(16, lanes // 256)))


# The kernels that `python -m bench tune` tunes.
TUNED: dict[str, type[ProductConfig]] = {
    config.name: config for config in (StudentProductConfig, HiddenGradientConfig, WeightGradientConfig, ProjectConfig)
}


def _table(**configs: list[ProductConfig]) -> dict[tuple[type[ProductConfig], str], ProductConfig]:
    return {(type(config), kind): config for kind, of_kind in configs.items() for config in of_kind}


# By kind of product: "half" for bf16 and fp16, "wide" for these from fp32 tensors (autocast), "tf32" for gradients of
# fp16, "ieee" for fp32.
SHIPPED = _table(
    half=[
        StudentProductConfig(BLOCK_N=128, BLOCK_U=256, BLOCK_H=64, num_warps=8, num_stages=4),
        HiddenGradientConfig(BLOCK_N=128, BLOCK_U=64, BLOCK_H=256, num_warps=8, num_stages=5),
        WeightGradientConfig(BLOCK_V=64, BLOCK_N=64, BLOCK_H=128, GROUP_H=8, num_warps=4, num_stages=5),
        ProjectConfig(BLOCK_N=128, BLOCK_V=256, BLOCK_H=64, num_warps=8, num_stages=3),
    ],
    wide=[
        StudentProductConfig(BLOCK_N=128, BLOCK_U=128, BLOCK_H=32, num_warps=8, num_stages=3),
        HiddenGradientConfig(BLOCK_N=128, BLOCK_U=32, BLOCK_H=128, num_warps=8, num_stages=3),
        WeightGradientConfig(BLOCK_V=128, BLOCK_N=32, BLOCK_H=128, GROUP_H=8, num_warps=8, num_stages=3),
    ],
    tf32=[
        HiddenGradientConfig(BLOCK_N=128, BLOCK_U=32, BLOCK_H=128, num_warps=8, num_stages=3),
        WeightGradientConfig(BLOCK_V=128, BLOCK_N=32, BLOCK_H=128, GROUP_H=8, num_warps=8, num_stages=3),
    ],
    ieee=[
        StudentProductConfig(BLOCK_N=64, BLOCK_U=128, BLOCK_H=32, num_warps=8, num_stages=3),
        HiddenGradientConfig(BLOCK_N=64, BLOCK_U=32, BLOCK_H=64, num_warps=8, num_stages=3),
        WeightGradientConfig(BLOCK_V=64, BLOCK_N=32, BLOCK_H=64, GROUP_H=16, num_warps=8, num_stages=3),
    ],
)
# Chips whose tensor cores take operands and sums from registers (mma.sync: Ampere, Ada, consumer Blackwell) have fewer
# registers left for a tile, and the consumer ones less than half the shared memory.
REGISTER_CHIPS = _table(
    half=[StudentProductConfig(BLOCK_N=128, BLOCK_U=128, BLOCK_H=64, num_warps=8, num_stages=3)],
)
# The sums of tcgen05 come out of their own memory through more registers than those of wgmma (Hopper).
TENSOR_MEMORY_CHIPS = _table(
    half=[ProjectConfig(BLOCK_N=128, BLOCK_V=128, BLOCK_H=64, num_warps=8, num_stages=4)],
)
# Where `python -m bench tune` measured project.py to beat cuBLAS and a pass over the logits (bench/LOG.md).
FUSED_PRODUCT_CHIPS = frozenset({90})

_instead: dict[type[ProductConfig], ProductConfig] = {}
_fused: bool | None = None

Config = TypeVar("Config", bound=ProductConfig)


@functools.cache
def capability() -> int:
    """80, 90, 100, ...; 0 where kernels are interpreted."""
    if not torch.cuda.is_available():
        return 0
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


@functools.cache
def _checked(config: Config, chip: int, kind: str) -> Config:
    config.check(chip, 4 if kind == "ieee" else 2)
    return config


def tiles_for(
    kernel: type[Config],
    operands: torch.dtype,
    precision: str = "ieee",
    *,
    wide: bool = False,
    chip: int | None = None,
) -> Config:
    """The configuration of a kernel that multiplies. `wide`: operands come from tensors of a wider dtype. `chip`: by
    default this machine's."""
    half = operands in (torch.bfloat16, torch.float16)
    kind = "wide" if half and wide else "half" if half else precision
    chip = capability() if chip is None else chip
    config = SHIPPED[kernel, kind]
    if has_tensor_memory(chip):
        config = TENSOR_MEMORY_CHIPS.get((kernel, kind), config)
    elif 0 < chip < 90 or chip >= 120:
        config = REGISTER_CHIPS.get((kernel, kind), config)
    if kind == "half":
        config = _instead.get(kernel, config)
    assert isinstance(config, kernel)
    return _checked(config, chip, kind)


def has_fused_product() -> bool:
    """Whether the teacher's logits come from project.py on this chip where it suits."""
    return capability() in FUSED_PRODUCT_CHIPS if _fused is None else _fused


@contextmanager
def use_tiles(*configs: ProductConfig, fused: bool | None = None) -> Iterator[None]:
    """Every call inside the block takes these for bf16 and fp16 operands (for tests and `python -m bench tune`).

    fused: whether project.py is used. None: yes if it is configured here, else as the chip decides.
    """
    global _instead, _fused
    previous = _instead, _fused
    _instead = {**_instead, **{type(config): config for config in configs}}
    if fused is not None or ProjectConfig in map(type, configs):
        _fused = fused is not False
    try:
        yield
    finally:
        _instead, _fused = previous
