"""Where the time of the whole loss goes, kernel by kernel: one call, forward and backward, under torch's profiler.

python -m bench profile            N=8192 H=4096 V=128256 K=512 in bf16 on a GPU, N=1024 H=512 V=65536 K=512 on a CPU
python -m bench profile --quick    tiny sizes: that it runs, not how fast it is
python -m bench profile --records bench/results/profile-h200.json    the table of an earlier run

Writes profile-<device>.json and .md. On a CPU, where nothing runs as a kernel, rows are torch's operations.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.common import files, machine
from bench.common import records as common
from bench.common.measure import milliseconds
from bench.common.options import make_parser
from bench.kernels import cases, records
from bench.kernels.cases import TEMPERATURE, Inputs, make_inputs
from raft_kernels import linear_topk, topk_kl

PARTS = ("teacher", "student forward", "student backward")
LEAST = 0.005  # of the whole: rows with less are put together


def main(argv: list[str]) -> int:
    parser = make_parser("profile", __doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="the records; the table goes beside them")
    parser.add_argument("--records", type=Path, help="measure nothing, show these")
    args = parser.parse_args(argv)
    if args.records:
        print(table(json.loads(args.records.read_text())))
        return 0
    cuda = args.device == "cuda"
    base = cases.QUICK if args.quick else cases.CUDA if cuda else cases.CPU
    if cuda:
        base = replace(base, dtype="bfloat16")
    name = machine.device_name(args.device)
    out = files.path_of("profile", device_name=name, out=args.out, quick=args.quick)
    origin = {"device": name, **files.origin(), "command": files.command_of("profile", argv)}
    found: list[dict[str, Any]] = []
    for regime in cases.REGIMES:
        case = replace(base, regime=regime)
        rows = profiled(make_inputs(case, args.device), args.device)
        found += [{"op": "linear_topk_kl", "pass": "full", **asdict(case), **row, **origin} for row in rows]
        if out is not None:
            about = f"{name}: {', '.join(f'{k} {v}' for k, v in files.versions().items())}; commit {files.commit()}"
            files.write_records(out, found, about, f"`{origin['command']}`", table(found))
    print(table(found))
    if out is not None:
        print(f"records: {out}")
    if not any(r["kernel"] for r in found):
        print("the profiler saw no kernel: its times are those of whole parts")
        return 1
    return 0


def profiled(x: Inputs, device: str) -> list[dict[str, Any]]:
    """Rows by part and kernel: launches and milliseconds; and a row a part with its time by events, unprofiled."""
    hidden, weight = x.parameters
    state: dict[str, Any] = {}

    def teacher() -> None:
        state["teacher"] = linear_topk(x.teacher_hidden, x.teacher_weight, x.k)

    def forward() -> None:
        state["loss"] = topk_kl(hidden, weight, state["teacher"], temperature=TEMPERATURE).mean()

    def backward() -> None:
        state["gradients"] = torch.autograd.grad(state["loss"], (hidden, weight))

    calls = dict(zip(PARTS, (teacher, forward, backward), strict=True))
    for call in calls.values():
        call()  # compiles
    rounds = [{part: milliseconds(call, device) for part, call in calls.items()} for _ in range(3)]
    whole = {part: min(times[part] for times in rounds) for part in PARTS}
    rows = []
    for part, call in calls.items():
        with profile(activities=[ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU]) as profiler:
            call()
            if device == "cuda":
                torch.cuda.synchronize()
        kind = DeviceType.CUDA if device == "cuda" else DeviceType.CPU
        events = [e for e in profiler.events() if e.device_type == kind]
        by_name: dict[str, list[float]] = {}
        for e in events:
            us = e.self_device_time_total if device == "cuda" else e.self_cpu_time_total
            by_name.setdefault(short(e.name), []).append(us / 1e3)
        rows += [
            {"part": part, "kernel": name, "launches": len(ms), "ms": common.digits(sum(ms))}
            for name, ms in sorted(by_name.items(), key=lambda item: -sum(item[1]))
            if sum(ms) > 0
        ]
        rows.append({"part": part, "kernel": None, "launches": len(events), "ms": common.digits(whole[part])})
    return rows


def short(name: str) -> str:
    """A kernel's name without its arguments and template arguments, which may fill a page. torch's elementwise kernels
    all have one name, so what they do is added."""
    name = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    if not re.match(r"[\w:]", name):
        return name[:80]
    found = re.match(r"[\w:. ]+", name)
    base = (found[0] if found else name).strip().removeprefix("at::native::")
    what = re.search(r"(\w+(?:Functor|_kernel_cuda|_kernel_impl|Op|_copy_kernel\w*))\b", name[len(base) :])
    return f"{base} {what[1]}"[:80] if what and "elementwise" in base else base[:80]


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown: one table a case; a part's own line is its time without the profiler."""
    parts = []
    for case, rows in groupby(found, key=records.case_of):
        listed = list(rows)
        whole = sum(r["ms"] for r in listed if r["kernel"] is None)
        parts.append(f"**{case}**, {listed[0]['device']}: {common.number(whole)} ms")
        lines = []
        for part, of_part in groupby(listed, key=lambda r: r["part"]):
            *kernels, total = of_part
            large = [r for r in kernels if r["ms"] >= LEAST * whole]
            small = [r for r in kernels if r["ms"] < LEAST * whole]
            if small:
                sums = {column: sum(r[column] for r in small) for column in ("launches", "ms")}
                large.append({"kernel": f"{len(small)} others", **sums})
            busy = sum(r["ms"] for r in kernels)
            large += [total | {"kernel": "busy", "ms": busy}, total | {"kernel": "**all, not profiled**"}]
            for r in large:
                share = 100 * r["ms"] / whole
                lines.append([part, r["kernel"], str(r["launches"]), common.number(r["ms"]), f"{share:.1f}"])
        parts.append(common.table("| part | kernel | launches | ms | % of the whole |", 2, lines))
    return "\n\n".join(parts)
