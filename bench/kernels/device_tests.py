"""The GPU tests (tests/kernels/test_gpu.py), a group at a time; the record of each is kept even if a later one crashes.

python -m bench tests --group numbers

A test after which the GPU no longer answers is recorded as such, and the rest run in a new process: in the old one each
of them would fail. Writes tests-<device>-<group>.json: test, outcome, seconds, message.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.common import files, machine
from bench.common.options import make_parser
from bench.kernels import lost

FILE = files.ROOT / "tests" / "kernels" / "test_gpu.py"
# By name, the most telling first. `rest` has all tests that no other group has.
GROUPS: dict[str, tuple[str, ...]] = {
    "smoke": (
        "test_triton_is_the_choice_here",
        "test_masked_tokens_are_exactly_nothing",
        "test_a_frozen_head_takes_no_memory_for_its_gradient",
    ),
    "numbers": (
        "test_three_way_tolerance",
        "test_fp32_tensors_under_autocast",
        "test_top_k_is_a_stable_sort",
        "test_adversarial_rows",
        "test_bit_equal_over_three_runs",
        "test_sizes_beyond_32_bits",
        "test_fused_product",  # off by default, and the likeliest to hang
    ),
    "compiled": ("test_compiles_without_a_graph_break",),
    "rest": (),
    "sanitizer": ("test_no_access_out_of_bounds",),
}


def in_group(test: str, group: str) -> bool:
    """`test`: the name of a test function."""
    named = {name for names in GROUPS.values() for name in names}
    return test not in named if group == "rest" else test in GROUPS[group]


class Recorder:
    """A plugin of pytest: runs the tests of a group that have no record yet, and records the outcome of each."""

    def __init__(self, group: str, device: str, out: Path | None, found: list[dict[str, Any]], origin: dict[str, Any]):
        self.group, self.device, self.out, self.found, self.origin = group, device, out, found, origin
        self.lost: lost.DeviceLost | None = None
        self.session: pytest.Session | None = None

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.session = session

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        done = {r["test"] for r in self.found}
        order = {name: place for place, name in enumerate(GROUPS[self.group])}
        kept = [i for i in items if in_group(_function(i.name), self.group) and i.name not in done]
        items[:] = sorted(kept, key=lambda item: order.get(_function(item.name), 0))

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # No report of setting up or cleaning up, and none after the GPU was lost, when everything fails.
        if (report.when != "call" and report.passed) or self.lost:
            return
        row: dict[str, Any] = {
            "test": report.location[2],
            "outcome": report.outcome,
            "seconds": round(report.duration, 2),
        }
        if report.skipped and isinstance(report.longrepr, tuple):
            row["message"] = report.longrepr[2].removeprefix("Skipped: ")
        elif report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            row["message"] = (crash.message if crash else report.longreprtext)[-4000:]
            try:
                lost.check_answers(self.device, row["test"])
            except lost.DeviceLost as error:
                self.lost, row["outcome"] = error, "lost the GPU"
        self.found.append(row | self.origin)
        if self.out is not None:
            files.write_records(self.out, self.found)
        if self.lost and self.session is not None:
            self.session.shouldstop = str(self.lost)  # pytest still reports what failed, and how


def _function(item: str) -> str:
    return item.partition("[")[0]


def main(argv: list[str]) -> int:
    parser = make_parser("tests", __doc__)
    parser.add_argument("--group", required=True, choices=GROUPS)
    parser.add_argument("--out", type=Path, help="the records")
    # Given when the program starts itself again: the tests that have a record are done.
    parser.add_argument("--go-on", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = machine.device_name(device)
    out = files.path_of("tests", args.group, device_name=name, out=args.out)
    found = json.loads(out.read_text()) if args.go_on and out is not None else []
    recorder = Recorder(args.group, device, out, found, {"device": name, **files.origin()})
    first = ["-x"] if args.group == "smoke" else []
    code = int(pytest.main([str(FILE), "-v", "-p", "no:cacheprovider", *first], plugins=[recorder]))
    if recorder.lost and not first:
        print(f"{recorder.lost}: the rest go on without it", flush=True)
        lost.start_again("tests", "--group", args.group, *(["--out", str(args.out)] if args.out else []), "--go-on")
    bad = sum(r["outcome"] in ("failed", "lost the GPU") for r in found)
    print(", ".join(f"{sum(r['outcome'] == o for r in found)} {o}" for o in sorted({r["outcome"] for r in found})))
    if out is not None:
        print(f"records: {out}")
    return code or int(bad > 0)
