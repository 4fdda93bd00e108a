"""Time and memory of the loss library beside plain torch, TRL and Liger.

python -m bench kernels            on a GPU a sweep around N=8192 H=4096 V=128256 K=512 in bf16,
                                   on a CPU N=1024 H=512 V=65536 K=512 in fp32
python -m bench kernels --quick    seconds, on tiny sizes: that it runs, not how fast it is
python -m bench kernels --records bench/results/kernels-h200.json    table, goals and picture of an earlier run

Writes kernels-<device>.json (records), .md (tables) and, where matplotlib is installed, .svg and .png to bench/results.
Sizes, sweep, dtype and regime of your own are part of the name; --quick writes only where --out says.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from bench.common import files, machine, options
from bench.common.limits import ceilings
from bench.kernels import cases, lost, providers, tune
from bench.kernels.cases import Case
from bench.kernels.sweep import VIEW, Sweep
from bench.kernels.variants import using

SIZES = {"n": "tokens", "h": "hidden size", "v": "vocabulary", "k": "ids of the teacher that are kept"}
TUNED = f"{providers.OURS}:tuned"
DTYPES = ("float32", "bfloat16", "float16", "float64")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.make_parser("kernels", __doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes; torch.compile only if --providers names it")
    parser.add_argument("--sweep", choices=("point", "axes", "full"), help="default: axes on a GPU, else point")
    parser.add_argument(
        "--losses",
        choices=("both", "distillation", "cross_entropy"),
        help="default: both, unless sizes or a regime are named",
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no operation after so many minutes")
    for name, what in SIZES.items():
        parser.add_argument(f"--{name}", type=int, help=f"{what}: one case, other sizes as in the base case")
    parser.add_argument("--regime", choices=(*cases.REGIMES, "both"), help="how much tokens share their ids")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--reps", type=int, help="timed calls of each variant (default: 20 on a GPU, else 5, quick 3)")
    parser.add_argument("--cap", type=float, default=1.0, help="seconds for them, after 5 calls (default: 1)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="threads of a CPU run (default: torch's choice)")
    parser.add_argument("--providers", default="", help=f"comma-separated, of {', '.join(providers.MAKERS)}")
    parser.add_argument(
        "--tuned",
        type=Path,
        nargs="?",
        const=Path(),
        help="records of `bench tune` (default: this device's in bench/results): its winners beside what ships",
    )
    parser.add_argument("--name", help="of the records, in place of what was asked for")
    parser.add_argument("--plain", action="store_true", help="no picture")
    parser.add_argument("--out", type=Path, help="the records; tables and picture go beside them")
    parser.add_argument("--records", type=Path, help="measure nothing, show these")
    # Given when the program starts itself again: keep the records that there are, and leave these providers out.
    parser.add_argument("--without", default="", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    named = options.choose(parser, "--providers", args.providers, providers.MAKERS)
    args.named = bool(args.providers)
    args.without = args.without.split(",") if args.without else []
    args.providers = [name for name in providers.MAKERS if name in named and name not in args.without]
    args.reps = args.reps or (3 if args.quick else 20 if args.device == "cuda" else 5)
    args.sizes = {name: getattr(args, name) for name in SIZES if getattr(args, name) is not None}
    if args.sizes and args.sweep in ("axes", "full"):
        parser.error(
            f"--sweep {args.sweep} has its own sizes: leave out {', '.join('--' + name for name in args.sizes)}"
        )
    return args


def chosen_cases(args: argparse.Namespace) -> list[Case]:
    cuda = args.device == "cuda"
    base = cases.QUICK if args.quick else cases.CUDA if cuda else cases.CPU
    kind = args.sweep or ("axes" if cuda and not args.quick and not args.sizes else "point")
    found = [cases.resized(base, args.sizes)] if kind == "point" else cases.sweep(base, kind)
    if args.regime:
        regimes = cases.REGIMES if args.regime == "both" else [args.regime]
        found = [replace(case, regime=regime) for case in found for regime in regimes]
    dtype = args.dtype or ("bfloat16" if cuda else "float32")
    found = list(dict.fromkeys(replace(case, dtype=dtype) for case in found))
    losses = args.losses or ("distillation" if args.sizes or args.regime else "both")
    labels = [case for case in cases.CROSS_ENTROPY[base] if args.dtype in (None, case.dtype)]
    return {"both": [*found, *labels], "distillation": found, "cross_entropy": labels}[losses]


def output(args: argparse.Namespace, device_name: str) -> Path | None:
    own = [args.name] if args.name else [f"{size}{value}" for size, value in args.sizes.items()]
    own += [] if args.name else [word for word in (args.sweep, args.dtype, args.regime) if word]
    return files.path_of("kernels", *own, device_name=device_name, out=args.out, quick=args.quick)


def main(argv: list[str]) -> int:
    args = parse(argv)
    if args.records:
        return VIEW.show_file(args.records, args.plain)
    if args.threads:
        torch.set_num_threads(args.threads)
    device_name = machine.device_name(args.device)
    todo = chosen_cases(args)
    run = Sweep(
        device=args.device,
        device_name=device_name,
        state=machine.state(),
        limit=ceilings(args.device, getattr(torch, todo[0].dtype), args.quick),
        command=files.command_of("kernels", argv),
        out=output(args, device_name),
        reps=args.reps,
        cap_s=args.cap,
        minutes=args.minutes,
    )
    print(f"{run.about()}; {len(todo)} cases, {args.reps} calls each", flush=True)
    usable, missing = providers.make(args.providers, args.device, args.quick)
    missing |= dict.fromkeys(args.without, "the GPU no longer answered after it")
    if args.tuned and TUNED not in args.without:
        if winners := tune.winners(tune_records(args, device_name)):
            ours = providers.MAKERS[providers.OURS](args.device, args.quick)
            usable.append(replace(ours, name=TUNED, context=partial(using, winners)))
            print(f"{TUNED}: {winners}", flush=True)
        else:
            missing[TUNED] = "what ships was not beaten"
    for name, why in missing.items():
        run.leave_out(name, why)
    if args.without and run.out is not None and run.out.exists():
        run.found = json.loads(run.out.read_text())
        remarks = json.loads(run.out.with_suffix(".remarks").read_text())  # written before every new start
        run.lines = list(dict.fromkeys([*remarks, *run.lines]))
    if args.named:
        usable = [replace(provider, slow_start=False) for provider in usable]
    elif args.quick:
        usable = [provider for provider in usable if not provider.slow_start]
    try:
        run.measure_all(todo, usable)
    except KeyboardInterrupt:
        run.interrupt()
    except lost.DeviceLost as error:
        VIEW.write(run)
        if run.out is not None:
            files.write(run.out.with_suffix(".remarks"), json.dumps(run.lines))
        print(f"{error}: starting again without it", flush=True)
        lost.start_again("kernels", *without(argv, [*args.without, error.culprit]))
    VIEW.write(run)
    VIEW.show(run.found, None if args.plain else run.out)
    if run.out is not None:
        print(f"records: {run.out}; tables: {run.out.with_suffix('.md').name}")
        run.out.with_suffix(".remarks").unlink(missing_ok=True)
    asked = providers.OURS in (*args.providers, *args.without)
    missed = asked and not any(r["provider"] == providers.OURS for r in run.found) and run.minutes > 0
    return 130 if run.interrupted else int(missed)


def tune_records(args: argparse.Namespace, device_name: str) -> list[dict]:
    """The records that --tuned names, or this device's."""
    path = args.tuned
    if path == Path():
        path = files.path_of("tune", device_name=device_name)
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SystemExit(f"--tuned: {path} holds no records of `bench tune` ({error})") from error


def without(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """The command line of a run that goes on without some providers."""
    before = argv[: argv.index("--without")] if "--without" in argv else argv
    return [*before, "--without", ",".join(names)]
