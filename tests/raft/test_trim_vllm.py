"""What of vLLM is left behind, on a library made for the test."""

import struct

import pytest

from scripts.trim_vllm import MAGIC, entries, stays_behind, trimmed


def fatbin(*parts: tuple[int, int, bytes]) -> bytes:
    body = b""
    for kind, chip, code in parts:
        head = struct.pack("<HHIQQII", kind, 0, 64, len(code), 0, 0, 0)[:28] + struct.pack("<I", chip)
        body += head.ljust(64, b"\0") + code
    return MAGIC + struct.pack("<HHQ", 1, 16, len(body)) + body


def test_what_is_not_kept_becomes_zeros_and_the_rest_stays_where_it_was():
    first = fatbin((2, 80, b"old chip"), (2, 90, b"this chip"), (1, 90, b"ptx"))
    library = b"elf" + MAGIC + b"\xff" * 12 + first + b"between" + fatbin((2, 90, b"more")) + b"end"
    found = [(kind, chip, library[start : start + size]) for kind, chip, start, size in entries(library)]
    assert found == [(2, 80, b"old chip"), (2, 90, b"this chip"), (1, 90, b"ptx"), (2, 90, b"more")]
    out = trimmed(library, lambda kind, chip, code: (kind, chip) == (2, 90))
    assert out == library.replace(b"old chip", bytes(8)).replace(b"ptx", bytes(3))


@pytest.mark.parametrize(
    "name, expected",
    [
        ("vllm/_C_stable_libtorch.abi3.so", False),
        ("vllm/_moe_C_stable_libtorch.abi3.so", True),
        ("vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so", True),
        ("vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so", False),
        ("vllm/model_executor/layers/fused_moe/batched_deep_gemm_moe.py", False),
        ("vllm/model_executor/kernels/cutlass.py", False),
        ("vllm/third_party/deep_gemm/__init__.py", True),
        ("vllm-0.24.0.dist-info/METADATA", False),
        ("vllm-0.24.0.dist-info/RECORD", True),
    ],
)
def test_native_files_stay_behind_and_modules_do_not(name, expected):
    assert stays_behind(name) is expected
