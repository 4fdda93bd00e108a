"""Time and memory of the loss library beside plain torch, TRL and Liger.

python -m bench kernels            N=1024 H=512 V=65536 K=512 in fp32
python -m bench kernels --quick    seconds, on tiny sizes: that it runs, not how fast it is
"""

import argparse
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from bench import providers, records
from bench.measure import measure

PROVIDERS = ("raft_kernels", "torch", "trl", "liger")
QUICK = {"n": 64, "h": 32, "v": 2048, "k": 32, "reps": 3}
FULL = {"n": 1024, "h": 512, "v": 65536, "k": 512, "reps": 5}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--n", type=int, help="tokens")
    parser.add_argument("--h", type=int, help="hidden size")
    parser.add_argument("--v", type=int, help="vocabulary")
    parser.add_argument("--k", type=int, help="tokens of the teacher that are kept")
    parser.add_argument("--reps", type=int, help="timed calls of each variant")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16", "float64"))
    parser.add_argument("--regime", default="randn", choices=("randn", "zipf"), help="how much tokens share their ids")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="threads of a CPU run (default: torch's choice)")
    parser.add_argument("--providers", default=",".join(PROVIDERS), help="comma-separated")
    parser.add_argument("--out", type=Path, help="records (default: bench/results/kernels-*.json)")
    args = parser.parse_args(argv)
    for name, value in (QUICK if args.quick else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.providers = args.providers.split(",")
    unknown = sorted(set(args.providers) - set(PROVIDERS))
    if unknown:
        parser.error(f"--providers: {', '.join(unknown)} unknown; there are {', '.join(PROVIDERS)}")
    return args


def passes(args: argparse.Namespace) -> dict[tuple[str, str], dict[str, Callable[[], object]]]:
    """(op, pass) -> provider -> call."""
    inputs = providers.make_inputs(args.n, args.h, args.v, args.k, getattr(torch, args.dtype), args.device, args.regime)
    losses = providers.losses(args.providers, args.quick)
    expected = providers.reference_loss(inputs) if args.quick else None
    if expected is not None and "raft_kernels" in losses:
        torch.testing.assert_close(losses["raft_kernels"](inputs).to(expected.dtype), expected, rtol=2e-2, atol=1e-3)
    parameters = (inputs.student_hidden, inputs.student_weight)

    def full(loss: Callable) -> object:
        return torch.autograd.grad(loss(inputs), parameters)

    return {
        ("linear_topk", "forward"): {name: partial(f, inputs) for name, f in providers.topk(args.providers).items()},
        ("linear_topk_kl", "forward"): {name: partial(f, inputs) for name, f in losses.items()},
        ("linear_topk_kl", "full"): {name: partial(full, f) for name, f in losses.items()},
    }


def main(argv: list[str]) -> int:
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    command = shlex.join(["python", "-m", "bench", "kernels", *argv])
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    shape = {name: getattr(args, name) for name in ("n", "h", "v", "k", "dtype", "regime")}
    print(", ".join(f"{name}={value}" for name, value in {"device": device, **shape, "reps": args.reps}.items()))
    found = []
    for (op, name), variants in passes(args).items():
        case = {"op": op, "device": device, **shape, "pass": name}
        measured = measure(variants, args.device, args.reps)
        found += [records.record(case, provider, m, command) for provider, m in measured.items()]
    print(records.table(found))
    out = (
        args.out
        or records.RESULTS / f"kernels-{args.device}-{args.dtype}-{args.regime}-{args.n}x{args.h}x{args.v}.json"
    )
    records.write(out, found)
    print(f"records: {out}")
    return 0
