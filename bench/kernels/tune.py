"""Tile sizes of the Triton kernels, beside what is shipped, on the GPU of this machine.

python -m bench tune                      every kernel's space at N=8192 H=4096 V=128256 K=512 in bf16, both regimes
python -m bench tune --kernels product    one kernel
python -m bench tune --list               the space itself; needs no GPU
TRITON_INTERPRET=1 python -m bench tune --quick --device cpu    that it runs: one configuration each, interpreted

Each row is a whole operation with one kernel's configuration changed, as a ratio to the shipped one in the same run. A
configuration counts only if its result is right: in the norm over all elements, against float64. What wins by more
than the noise (`winners`; `bench kernels --tuned` times them together) goes into kernels/raft_kernels/gpu/configs.py by
hand, with a line in LOG.md: a configuration that changed by itself would change the bits of a result from one run to
the next.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from bench.common import files, machine
from bench.common.failures import reason
from bench.common.measure import measure
from bench.common.options import choose, make_parser
from bench.kernels import cases, lost
from bench.kernels.cases import Inputs, make_inputs
from bench.kernels.check import check_close
from bench.kernels.variants import Config, using
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
        (64, 64, 128, 8, 4, 3),
        (64, 64, 128, 8, 4, 7),
        (64, 64, 128, 4, 4, 5),
        (64, 64, 128, 16, 4, 5),
        (64, 64, 256, 4, 4, 5),
        (64, 64, 256, 4, 8, 5),
        (64, 128, 128, 8, 4, 3),
        (64, 32, 128, 8, 4, 7),
        (128, 64, 128, 8, 8, 5),
        (128, 64, 256, 4, 8, 5),
    ],
    "project": [
        (128, 256, 64, 8, 3),
        (128, 256, 64, 8, 2),
        (128, 128, 64, 8, 4),
        (128, 128, 64, 4, 4),
        (256, 128, 64, 8, 3),
    ],
}


QUICK = cases.Case(16, 32, 512, 16, "bfloat16", "randn")
# Of the norm of the exact result. Operands are rounded to bf16 once, and so is the result: 0.3 % in all. The
# interpreter truncates instead.
TOLERANCE, INTERPRETED_TOLERANCE = 1e-2, 3e-2
# A winner is faster than what ships by this share, over both regimes: less is noise.
MARGIN = 0.02


def config(kernel: str, values: tuple[int, ...]) -> Config:
    return dict(zip((*BLOCKS[kernel], "num_warps", "num_stages"), values, strict=True))


def operation(kernel: str, x: Inputs) -> Callable[[], object]:
    """The smallest public call that runs the kernel and no other of the space."""
    from raft_kernels import linear_topk, topk_kl

    if kernel == "project":
        return lambda: linear_topk(x.teacher_hidden, x.teacher_weight, x.k)
    hidden, weight = (t.detach() for t in x.parameters)
    if kernel == "product":
        return lambda: topk_kl(hidden, weight, x.teacher)
    wanted = (hidden if kernel == "hidden_gradient" else weight).requires_grad_()
    loss = topk_kl(hidden, weight, x.teacher).sum()
    return lambda: torch.autograd.grad(loss, wanted, retain_graph=True)[0]


def exact(x: Inputs) -> dict[str, Tensor]:
    """What `operation` must give, by kernel, in float64: a chunk of tokens at a time."""
    from raft_kernels.reference import topk_kl_ref

    hidden, weight = (t.detach().double() for t in x.parameters)
    loss, by_hidden, by_weight = [], [], torch.zeros_like(weight)
    for rows in torch.arange(len(hidden), device=hidden.device).split(cases.token_chunk(len(weight))):
        part, head = hidden[rows].requires_grad_(), weight.clone().requires_grad_()
        value = topk_kl_ref(part, head, TopK(x.teacher.indices[rows], x.teacher.logits[rows].double()))
        of_hidden, of_weight = torch.autograd.grad(value.sum(), (part, head))
        loss.append(value.detach())
        by_hidden.append(of_hidden)
        by_weight += of_weight
    return {
        "product": torch.cat(loss),
        "hidden_gradient": torch.cat(by_hidden),
        "weight_gradient": by_weight,
        "project": x.teacher.logits.double().sort(-1).values,
    }


def check(result: object, expected: Tensor, tolerance: float) -> None:
    """Raises WrongResult. Compares the sorted logits of a top-K: another order of sums may swap ids of near ties."""
    found = result.logits.sort(-1).values if isinstance(result, TopK) else cast(Tensor, result)
    check_close("it is", found, expected, tolerance)


def main(argv: list[str]) -> int:
    args = parse(argv)
    if args.list:
        for kernel in args.kernels:
            print(*(f"{kernel} {config(kernel, values)}" for values in SPACE[kernel]), sep="\n")
        return 0
    device_name = machine.device_name(args.device)
    out = files.path_of("tune", device_name=device_name, out=args.out, quick=args.quick)
    found = json.loads(out.read_text()) if args.go_on and out is not None else []
    words = [word for word in argv if word != "--go-on"]
    about = {"device": device_name, **files.origin(), "command": files.command_of("tune", words)}

    def add(row: dict[str, Any]) -> None:
        found.append(row | about)
        if out is not None:
            files.write_records(out, found)

    # The fused product last: it is off by default, and its loads by descriptors are the likeliest to hang.
    groups = [[k for k in args.kernels if k != "project"], [k for k in args.kernels if k == "project"]]
    try:
        for regime, kernels in ((regime, group) for group in groups for regime in cases.REGIMES):
            done = {r["kernel"] for r in found if r["regime"] == regime and "ms_p50" in r}
            todo = [kernel for kernel in kernels if kernel not in done]
            if not todo:
                continue
            x = make_inputs(replace(QUICK if args.quick else cases.CUDA, regime=regime), args.device)
            expected = exact(x)
            for kernel in todo:
                for row in tuned(kernel, x, expected[kernel], args, found):
                    add({"kernel": kernel, "regime": regime, **row})
            del x, expected
    except lost.DeviceLost as error:
        print(f"{error}: starting again without it", flush=True)
        kernel, label = error.culprit.split(" ", 1)
        add({"kernel": kernel, "regime": regime, "config": label, "failed": str(error)})
        lost.start_again("tune", *words, "--go-on")
    except KeyboardInterrupt:
        print("interrupted: what was measured before is kept", flush=True)
        return 130
    for kernel, chosen in winners(found).items():
        print(f"winner: {kernel} {json.dumps(chosen)}", flush=True)
    if out is not None:
        print(f"records: {out}")
    return int(not any("ms_p50" in r for r in found))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("tune", __doc__)
    parser.add_argument("--kernels", default=",".join(SPACE), help=f"comma-separated, of {', '.join(SPACE)}")
    parser.add_argument("--reps", type=int, default=10)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one configuration of each kernel")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: interpreted, with --quick")
    parser.add_argument("--out", type=Path, help="the records")
    # Given when the program starts itself again: keep the records that there are, and leave out what failed in them.
    parser.add_argument("--go-on", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.kernels = choose(parser, "--kernels", args.kernels, SPACE)
    if args.list:
        return args
    from raft_kernels.dispatch import INTERPRETED

    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("it needs an NVIDIA GPU; --list shows what it would try")
    if args.device == "cpu" and not (INTERPRETED and args.quick):
        parser.error("--device cpu needs TRITON_INTERPRET=1 and --quick")
    return args


def tuned(
    kernel: str, x: Inputs, expected: Tensor, args: argparse.Namespace, found: Sequence[dict]
) -> Iterator[dict[str, Any]]:
    """Rows by configuration: the shipped one (for `project` the product by cuBLAS and a pass over the logits), and
    those of the space. The row of one that is wrong, or needs more than the chip has, gives the reason in `failed`."""
    from raft_kernels import use_backend

    tolerance = TOLERANCE if args.device == "cuda" else INTERPRETED_TOLERANCE
    down = {r["config"] for r in found if r["kernel"] == kernel and "failed" in r}
    failed: list[dict[str, Any]] = []

    def fail(label: str, error: Exception) -> None:
        print(f"{kernel} {label}: left out, {reason(error)}", flush=True)
        lost.check_answers(args.device, f"{kernel} {label}")
        failed.append({"config": label, "failed": reason(error)})

    def run(call: Callable[[], object], chosen: Config | None) -> object:
        with using({kernel: chosen} if chosen else {}), use_backend("triton"):
            return call()

    variants: dict[str, Callable[[], object]] = {}
    for chosen in [None, *(config(kernel, values) for values in SPACE[kernel][: 1 if args.quick else None])]:
        label = json.dumps(chosen) if chosen else "shipped"
        if label in down:
            continue
        print(f"{kernel} {label}", flush=True)  # names a configuration that hangs
        try:
            with use_backend("triton"):
                call = operation(kernel, x)
            check(run(call, chosen), expected, tolerance)
        except Exception as error:  # noqa: BLE001
            fail(label, error)
            continue
        variants[label] = partial(run, call, chosen)
    measured = measure(variants, args.device, args.reps, on_error=fail)
    yield from failed
    base = measured["shipped"].ms_p50 if "shipped" in measured else math.nan
    for label, m in sorted(measured.items(), key=lambda item: item[1].ms_p50):
        print(
            f"{kernel:16} {m.ms_p50:8.2f} ms  {m.ms_p50 / base:5.2f} x shipped  {m.peak_mib:7.0f} MiB  {label}",
            flush=True,
        )
        yield {"config": label, **vars(m)}


def winners(found: Sequence[dict[str, Any]]) -> dict[str, Config]:
    """Kernel -> the configuration that is fastest over all regimes, by the geometric mean of its times to the shipped
    one's, where it wins by MARGIN. One that failed in any regime cannot win. Each is tuned alone; `bench kernels
    --tuned` measures whether they gain together (tiles of tokens of different sizes need lists of their own)."""
    times: dict[str, dict[str, list[float]]] = {}
    for r in found:
        if "ms_p50" in r:
            times.setdefault(r["kernel"], {}).setdefault(r["config"], []).append(r["ms_p50"])
    chosen = {}
    for kernel, by_config in times.items():
        base = by_config.get("shipped", [])
        complete = {label: ms for label, ms in by_config.items() if len(ms) == len(base)}
        if not complete:
            continue
        best = min(complete, key=lambda label: math.prod(complete[label]))
        ratio = (math.prod(complete[best]) / math.prod(base)) ** (1 / len(base))
        if best != "shipped" and ratio <= 1 - MARGIN:
            chosen[kernel] = json.loads(best)
    return chosen
