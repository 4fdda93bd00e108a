"""Cuts vLLM's CUDA wheel from 266 MiB to 25 MiB, to copy it to a GPU machine without network access.

    pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 -d dl vllm==0.24.0
    python scripts/trim_vllm.py dl/vllm-0.24.0-*.whl vllm.tar.xz

The result runs dense models in bf16 on sm_90: all Python files, the core operators, the allocator, FlashAttention 3.
Code for other chips and data types is replaced by zeros, which compress to almost nothing; a kernel without code fails
when it is called. Tested on an H100 with torch 2.11.0.
"""

import io
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator

MAGIC = struct.pack("<I", 0xBA55ED50)  # start of a fatbin
HEADER, MACHINE_CODE, CHIP = 16, 2, 90
NATIVE = ("_vllm_fa2_C", "_moe_C", "_flashmla", "_deep_gemm", "vllm-rs", "cutlass")  # native files that are left out
FOLDERS = ("vllm/third_party/deep_gemm/", "vllm/third_party/flashmla/")  # useless without these files, but tried first


def main(wheel: str, target: str) -> None:
    with zipfile.ZipFile(wheel) as source, tarfile.open(target, "w:xz", preset=6) as out:
        for name in source.namelist():
            if stays_behind(name):
                continue
            data = source.read(name)
            if "_C_stable_libtorch" in name:
                data = trimmed(data, lambda kind, chip, code: (kind, chip) == (MACHINE_CODE, CHIP))
            elif "_vllm_fa3_C" in name:
                data = trimmed(data, lambda kind, chip, code: _is_bf16(code))
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755 if name.endswith(".so") else 0o644
            out.addfile(info, io.BytesIO(data))


def stays_behind(name: str) -> bool:
    """Whether a file is left out. vLLM's own Python modules all stay: others import those with "cutlass" or "deep_gemm"
    in their names."""
    if name.startswith(FOLDERS) or name.endswith(".dist-info/RECORD"):
        return True
    if name.endswith((".so", "vllm-rs")):
        return any(part in name for part in NATIVE)
    return "/include/" in name and not name.endswith(".py")


def _is_bf16(code: bytes) -> bool:
    """Whether code is for bf16, or names no data type: such code schedules the decoding and is needed too."""
    return b"float_e4m3" not in code and (b"bfloat16_t" in code or b"half_t" not in code)


def trimmed(data: bytes, keep: Callable[[int, int, bytes], bool]) -> bytes:
    """A shared library with zeros in place of each entry for which keep(kind, chip, code) is false."""
    out = bytearray(data)
    for kind, chip, start, size in entries(data):
        if not keep(kind, chip, data[start : start + size]):
            out[start : start + size] = bytes(size)
    return bytes(out)


def entries(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Kind, chip, offset and size of the code in every fatbin of a shared library."""
    at = 0
    while (at := data.find(MAGIC, at)) >= 0:
        version, header = struct.unpack_from("<HH", data, at + 4)
        (size,) = struct.unpack_from("<Q", data, at + 8)
        if version != 1 or header != HEADER or size > len(data):
            at += 4  # the bytes of MAGIC by chance
            continue
        entry, end = at + header, at + header + size
        while entry < end:
            kind, _, own = struct.unpack_from("<HHI", data, entry)
            (length,) = struct.unpack_from("<Q", data, entry + 8)
            (chip,) = struct.unpack_from("<I", data, entry + 28)
            yield kind, chip, entry + own, length
            entry += own + length
        at = end


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
