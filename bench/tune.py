"""Tile sizes of the Triton kernels, beside what is shipped, on the GPU of this machine.

python -m bench tune                      every kernel's space at N=8192 H=4096 V=128256 K=512 in bf16, both regimes
python -m bench tune --kernels product    one kernel
python -m bench tune --list               the space itself; needs no GPU

Each row is a whole operation with one kernel's configuration changed, as a ratio to the shipped one in the same run.
What wins by more than the noise goes into kernels/raft_kernels/gpu/configs.py by hand, with a line in LOG.md: a
configuration that changed by itself would change the bits of a result from one run to the next.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from bench import cases, records
from bench.cases import Inputs, make_inputs
from bench.measure import Measured, measure
from raft_kernels import TopK

# Blocks in the order of BLOCKS, then warps and stages. None of them spills on sm_90.
BLOCKS = {
    "product": ("BLOCK_N", "BLOCK_U", "BLOCK_H"),
    "hidden_gradient": ("BLOCK_N", "BLOCK_U", "BLOCK_H"),
    "weight_gradient": ("BLOCK_V", "BLOCK_N", "BLOCK_H", "GROUP_H"),
    "project": ("BLOCK_N", "BLOCK_V", "BLOCK_H"),
}
SPACE: dict[str, list[tuple[int, ...]]] = {
    "product": [
        (128, 256, 64, 8, 3),
        (128, 256, 64, 8, 4),
        (128, 256, 32, 8, 4),
        (128, 128, 64, 8, 3),
        (128, 128, 64, 8, 4),
        (128, 128, 128, 8, 3),
        (128, 128, 64, 4, 4),
        (64, 256, 64, 4, 4),
        (64, 256, 64, 8, 4),
        (64, 128, 64, 4, 4),
    ],
    "hidden_gradient": [
        (128, 64, 256, 8, 3),
        (128, 64, 256, 8, 5),
        (128, 128, 256, 8, 3),
        (128, 32, 256, 8, 7),
        (128, 64, 128, 8, 5),
        (128, 64, 128, 8, 7),
        (64, 64, 256, 4, 5),
        (64, 64, 256, 8, 5),
        (64, 64, 128, 4, 5),
    ],
    "weight_gradient": [
        (128, 64, 256, 1, 8, 5),
        (128, 64, 256, 4, 8, 5),
        (128, 64, 256, 8, 8, 5),
        (128, 64, 256, 16, 8, 5),
        (128, 64, 256, 4, 8, 3),
        (128, 128, 256, 4, 8, 3),
        (128, 64, 128, 8, 8, 5),
        (128, 64, 128, 8, 8, 7),
        (64, 64, 256, 4, 4, 5),
        (64, 64, 128, 8, 4, 5),
    ],
    "project": [
        (128, 256, 64, 8, 3),
        (128, 256, 64, 8, 2),
        (128, 128, 64, 8, 4),
        (128, 128, 64, 4, 4),
        (256, 128, 64, 8, 3),
    ],
}


def config(kernel: str, values: tuple[int, ...]) -> dict[str, int]:
    return dict(zip((*BLOCKS[kernel], "num_warps", "num_stages"), values, strict=True))


@contextmanager
def using(kernel: str, chosen: dict[str, int]) -> Iterator[None]:
    from raft_kernels.gpu import configs, project

    tables = [configs.SHIPPED, configs.REGISTER_TILES]
    before, enabled = [dict(table) for table in tables], project.ENABLED
    for table in tables:
        table[kernel, "half"] = chosen
    project.ENABLED = kernel == "project"
    try:
        yield
    finally:
        for table, old in zip(tables, before, strict=True):
            table.clear()
            table.update(old)
        project.ENABLED = enabled


def operation(kernel: str, x: Inputs) -> Callable[[], object]:
    """The smallest public call that runs the kernel and no other of the space."""
    from raft_kernels import linear_topk, topk_kl

    if kernel == "project":
        return lambda: linear_topk(x.teacher_hidden, x.teacher_weight, x.k)
    hidden, weight = (t.detach() for t in x.parameters)
    if kernel == "product":
        return lambda: topk_kl(hidden, weight, x.teacher)
    wanted = (hidden if kernel == "hidden_gradient" else weight).requires_grad_()
    loss = topk_kl(hidden, weight, x.teacher).mean()
    return lambda: torch.autograd.grad(loss, wanted, retain_graph=True)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernels", default=",".join(SPACE), help=f"comma-separated, of {', '.join(SPACE)}")
    parser.add_argument("--reps", type=int, default=10)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--out", type=Path, default=records.RESULTS / "tune.json")
    args = parser.parse_args(argv)
    kernels = args.kernels.split(",")
    unknown = sorted(set(kernels) - set(SPACE))
    if unknown:
        parser.error(f"--kernels: {', '.join(unknown)} unknown; there are {', '.join(SPACE)}")
    if args.list:
        for kernel in kernels:
            print(*(f"{kernel} {config(kernel, values)}" for values in SPACE[kernel]), sep="\n")
        return 0
    if not torch.cuda.is_available():
        parser.error("it needs an NVIDIA GPU; --list shows what it would try")
    found = []
    for regime in cases.REGIMES:
        case = replace(cases.CUDA, regime=regime)
        x = make_inputs(case, "cuda")
        for kernel in kernels:
            for label, measured in tuned(kernel, x, args.reps).items():
                found.append({"kernel": kernel, "regime": regime, "config": label, **vars(measured)})
                write(args.out, found)
        del x
    return 0


def tuned(kernel: str, x: Inputs, reps: int) -> dict[str, Measured]:
    """Shipped configuration first; for `project` that is the way without it, cuBLAS and a pass over the logits."""
    call = operation(kernel, x)
    expected = call()

    def run(chosen: dict[str, int]) -> object:
        with using(kernel, chosen):
            return call()

    def checked(chosen: dict[str, int]) -> None:
        torch.testing.assert_close(comparable(run(chosen)), comparable(expected), rtol=2e-2, atol=1e-3)

    variants: dict[str, Callable[[], object]] = {"shipped": call}
    for values in SPACE[kernel]:
        chosen = config(kernel, values)
        label = json.dumps(chosen)
        try:
            checked(chosen)
        # More than the chip has, or a wrong result: both are news, and neither ends the run.
        except Exception as error:  # noqa: BLE001
            print(f"{kernel} {label}: left out, {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
            continue
        variants[label] = partial(run, chosen)
    found = measure(variants, "cuda", reps)
    base = found["shipped"].ms_p50
    for label, m in sorted(found.items(), key=lambda item: item[1].ms_p50):
        print(
            f"{kernel:16} {m.ms_p50:8.2f} ms  {m.ms_p50 / base:5.2f} x shipped  {m.peak_mib:7.0f} MiB  {label}",
            flush=True,
        )
    return found


def comparable(result: object) -> object:
    """Another order of summation may swap the ids of near ties; the logits in order stay close."""
    return result.logits.sort(-1).values if isinstance(result, TopK) else result


def write(out: Path, found: list[dict]) -> None:
    about = {"device": torch.cuda.get_device_name(), "versions": records.versions(), "commit": records.commit()}
    records.write(out, json.dumps([{**about, **row} for row in found], indent=1) + "\n")
