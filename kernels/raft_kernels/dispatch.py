"""Which backend runs: decided here and nowhere else.

`backend=None` follows `use_backend(...)`, then the environment variable RAFT_KERNELS_BACKEND as it was at import, then
the choice for the device. Today plain torch operations serve every device.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

BACKENDS = ("torch", "triton")

_forced: str | None = os.environ.get("RAFT_KERNELS_BACKEND")


def choose_backend(backend: str | None, op: str) -> str:
    """The backend that `op` runs on; an unknown or unavailable one is an error that names it."""
    chosen = backend or _forced or "torch"
    if chosen not in BACKENDS:
        raise ValueError(f"{op}: backend={chosen!r} is unknown; use one of {', '.join(BACKENDS)} or None")
    if chosen == "triton":
        raise NotImplementedError(
            f"{op}: backend='triton' is not available in this version; use backend='torch' or None"
        )
    return chosen


@contextmanager
def use_backend(backend: str | None) -> Iterator[None]:
    """Every call inside the block that names no backend uses this one (for tests and benchmarks)."""
    global _forced
    previous, _forced = _forced, backend
    try:
        yield
    finally:
        _forced = previous
