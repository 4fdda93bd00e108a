"""Which backend runs, and which way the student's logits go: decided here and nowhere else.

`backend=None` follows `use_backend(...)`, then the environment variable RAFT_KERNELS_BACKEND as it was at import, then
the choice for the device: Triton kernels on an NVIDIA GPU of capability 8.0 or later, plain torch operations elsewhere.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

BACKENDS = ("torch", "triton")
HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# How many times K the vocabulary has to be before reading only the rows that are needed is faster than a product with
# the whole head: single rows on a CPU, the union of the rows of neighbouring tokens in Triton.
SPARSE_RATIO = 4
UNION_RATIO = 8

_forced: str | None = os.environ.get("RAFT_KERNELS_BACKEND")
_dense: bool | None = None


def _why_not_triton(device: torch.device, operands: torch.dtype) -> str | None:
    """What keeps Triton kernels from these tensors, in words; None if nothing does."""
    if not HAS_TRITON:
        return "triton is not installed"
    if operands == torch.float64:
        return "it has no float64"
    if device.type == "cuda":
        fits = torch.version.hip is None and torch.cuda.get_device_properties(device).major >= 8
        return None if fits else "it needs an NVIDIA GPU of capability 8.0 or later"
    if device.type == "cpu":
        return None if INTERPRETED else "on CPU tensors it needs TRITON_INTERPRET=1, set before the start (for tests)"
    return f"it does not run on {device.type} tensors"


def choose_backend(backend: str | None, op: str, device: torch.device, operands: torch.dtype) -> str:
    """The backend that `op` runs on. An unknown one is an error; so is one that a call names and that cannot run."""
    chosen = backend or _forced
    if chosen is not None and chosen not in BACKENDS:
        raise ValueError(f"{op}: backend={chosen!r} is unknown; use one of {', '.join(BACKENDS)} or None")
    if chosen == "torch" or (chosen is None and device.type != "cuda"):
        return "torch"
    reason = _why_not_triton(device, operands)
    # Triton has no float64. Float64 tensors then run in torch, unless this very call names Triton: that is an error.
    if reason and chosen == "triton" and (backend or operands != torch.float64):
        raise ValueError(f"{op}: backend='triton' cannot run here: {reason}")
    return "torch" if reason else "triton"


def choose_way(backend: str, device: torch.device, vocab: int, k: int, rest: bool) -> str:
    """How the student's logits at K of `vocab` ids are computed: "union", "sparse" or "dense" (student/__init__.py).

    rest: the logit of all other tokens together is wanted too, which takes the logits of the whole vocabulary.
    """
    if rest or _dense:
        return "dense"
    if backend == "triton" and (_dense is False or vocab >= UNION_RATIO * k):
        return "union"
    if device.type == "cpu" and (_dense is False or vocab > SPARSE_RATIO * k):
        return "sparse"
    return "dense"


@contextmanager
def use_backend(backend: str | None) -> Iterator[None]:
    """Every call inside the block that names no backend uses this one (for tests and benchmarks)."""
    global _forced
    previous, _forced = _forced, backend
    try:
        yield
    finally:
        _forced = previous


@contextmanager
def use_dense(dense: bool | None) -> Iterator[None]:
    """Every call inside the block computes the student's logits by products with the whole head (True), from the rows
    that it needs where that is possible (False), or as K and the vocabulary decide (None); for tests and benchmarks."""
    global _dense
    previous, _dense = _dense, dense
    try:
        yield
    finally:
        _dense = previous
