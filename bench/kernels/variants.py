"""Configurations of the kernels other than the shipped ones, to be timed beside those in one run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

Config = dict[str, int]


@contextmanager
def using(changes: Mapping[str, Config]) -> Iterator[None]:
    """Kernel -> its configuration for bf16 and fp16, while this lasts. "project" turns the fused product on."""
    from raft_kernels.gpu import configs, project

    tables = [configs.SHIPPED, configs.REGISTER_TILES, configs.TENSOR_MEMORY_TILES]
    before, faster_on = [dict(table) for table in tables], set(project.FASTER_ON)
    for kernel, chosen in changes.items():
        for table in tables:
            table[kernel, "half"] = chosen
    if "project" in changes:
        project.FASTER_ON.add(configs.capability())
    try:
        yield
    finally:
        for table, old in zip(tables, before, strict=True):
            table.clear()
            table.update(old)
        project.FASTER_ON.clear()
        project.FASTER_ON.update(faster_on)
