"""Configurations of the kernels other than the shipped ones, to be timed beside those in one run."""

from collections.abc import Mapping
from contextlib import AbstractContextManager


def using(changes: Mapping[str, Mapping[str, int]]) -> AbstractContextManager[None]:
    """Kernel -> its configuration for bf16 and fp16, while this lasts. "project" turns the fused product on."""
    from raft_kernels.gpu.tiles import TUNED, use_tiles

    return use_tiles(*(TUNED[kernel](**chosen) for kernel, chosen in changes.items()))
