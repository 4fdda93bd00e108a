"""How much the operations hold at once beyond their inputs and results.

Work on more than a budget is done in chunks that share one buffer. With other budgets sums over chunks are made in
another order, so that results differ by rounding, and by nothing else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Budgets:
    """Bounds of workspaces, in elements unless a field says otherwise."""

    cpu_logits: int = 1 << 24
    """The [tokens, V] buffer of logits on a CPU: 64 MiB in fp32, which a laptop has."""
    cuda_logits: int = 1 << 27
    """The same on a GPU: 512 MiB in fp32, enough tokens to keep all multiprocessors busy."""
    cuda_teacher_logits: int = 1 << 28
    """The teacher's on a GPU, 1 GiB: with half as many chunks the head is read half as often, and the buffer is freed
    before the student's backward pass takes more memory than that."""
    cpu_cast: int = 1 << 22
    """A slice of the head that is being converted to fp32 on a CPU."""
    cuda_cast: int = 1 << 27
    """The same on a GPU."""
    cpu_pairs: int = 1 << 23
    """(token, id) pairs that the student's sparse way handles at once: bounds its sorted copies of the ids."""
    cpu_table: int = 1 << 26
    """The table of converted head rows of the student's sparse way."""
    cpu_cache: int = 1 << 19
    """Logits that cross-entropy turns into a gradient at once on a CPU: they stay in a core's cache."""
    cross_entropy_tokens: int = 128
    """The fewest tokens of a chunk of cross-entropy, even if they exceed `cpu_logits`. Shorter chunks make the
    products and the sum of the head's gradient slow (a CPU, 256 tokens, V = 151936: 1.19 times plain torch's time in
    chunks of 65 tokens, 0.97 in chunks of 128)."""
    union_workspace: int = 1 << 27
    """The [tokens, union] and [tokens, ids] workspaces of the Triton kernels."""
    union_pairs: int = 1 << 24
    """(tile, id) pairs whose unions are listed at once: a list takes some 20 bytes a pair."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"Budgets: {name}={value!r} must be an integer of at least 1")


_current = Budgets()


def current() -> Budgets:
    return _current


@contextmanager
def use_budgets(**changes: int) -> Iterator[None]:
    """Changes these fields of `Budgets` for every call, and every backward pass, inside the block."""
    global _current
    previous, _current = _current, replace(_current, **changes)
    try:
        yield
    finally:
        _current = previous
