"""What the commands `train` and `rollout` share: their options, the machine that they prepare, and the run itself."""

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.common import files, machine, options, plot
from bench.common.children import ChildResult, ChildRun, measure_children
from bench.common.limits import ceilings
from bench.common.view import Records, View
from bench.steps.records import by_model
from bench.steps.work import ON_GPU, WORKS, Work, real
from raft.real import DATA_DIR, REAL_MODEL


def make_parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """With the options that both commands have."""
    parser = options.make_parser(name, about)
    parser.add_argument("--quick", action="store_true", help="a tiny model, one thread, no vLLM unless named")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    parser.add_argument("--models", type=works, help=f"comma-separated, of {', '.join(WORKS)}")
    parser.add_argument(
        "--model",
        nargs="?",
        const="",
        help=f"a checkpoint in place of --models (default: the one that {REAL_MODEL} names)",
    )
    parser.add_argument(
        "--data", default="", help=f"JSONL with its questions and answers; a name in {DATA_DIR}, or a path"
    )
    parser.add_argument("--batch", type=int, default=8, help="rows of a step, with --model (default: 8)")
    parser.add_argument("--threads", type=int, help="threads of a CPU run (default: torch's choice, quick 1)")
    parser.add_argument("--rollout-tokens", type=int, help="a rollout's most, in place of the model's own")
    parser.add_argument("--alone", action="store_true", help="one provider after the other, not by turns")
    parser.add_argument("--out", type=Path, help="the records; tables and picture go beside them")
    parser.add_argument("--records", type=Path, help="measure nothing, show these")
    return parser


def checkpoint(args: argparse.Namespace) -> Work:
    """The work that --model, --data and --batch ask for. ValueError where they do not say enough."""
    folder = args.model or os.environ.get(REAL_MODEL, "")
    path = Path(os.environ.get(DATA_DIR, ""), args.data)
    data = path if path.exists() else Path(args.data)
    if not folder:
        raise ValueError(f"--model: name a folder, here or in {REAL_MODEL}")
    if not args.data or not data.is_file():
        raise ValueError(f"--data: {args.data or 'missing'}; a file of rows goes with --model, here or in {DATA_DIR}")
    return real(folder, str(data.resolve()), args.batch)


def works(names: str) -> list[Work]:
    if unknown := [name for name in names.split(",") if name not in WORKS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} unknown; there are {', '.join(WORKS)}")
    return [WORKS[name] for name in names.split(",")]


def prepare(args: argparse.Namespace, name: str, argv: Sequence[str]) -> ChildRun:
    """Settles device, models, threads and file names, and measures the ceilings of the machine."""
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no GPU here")
    args.alone = args.alone or args.device == "cuda"
    if args.model is not None:
        try:
            args.models = [checkpoint(args)]
        except ValueError as error:
            raise SystemExit(str(error)) from error
    default = ["quick"] if args.quick else ON_GPU if args.device == "cuda" else ["cpu"]
    args.models = args.models or [WORKS[name] for name in default]
    if args.rollout_tokens:
        args.models = [replace(work, rollout_most=args.rollout_tokens) for work in args.models]
    state = machine.state()  # before anything of ours runs
    threads = args.threads or (1 if args.quick else torch.get_num_threads())
    torch.set_num_threads(threads)
    if args.threads or args.quick:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # for the children
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    device_name = machine.device_name(args.device)
    own = [args.models[0].name.lower()] if args.model is not None else []
    run = ChildRun(
        device=args.device,
        device_name=device_name,
        state=state,
        limit=ceilings(args.device, torch.bfloat16 if args.device == "cuda" else torch.float32, args.quick),
        command=files.command_of(name, argv),
        out=files.path_of(name, *own, device_name=device_name, out=args.out, quick=args.quick),
    )
    print(run.about(), flush=True)
    for missing, why in args.missing.items():
        run.leave_out(missing, why)
    return run


def run_models(
    view: View,
    name: str,
    args: argparse.Namespace,
    argv: Sequence[str],
    measure: Callable[[Work, argparse.Namespace, ChildRun], None],
) -> int:
    """Measures every model and publishes, or shows what was measured before; gives the exit status."""
    if args.records:
        return view.show_file(args.records)
    run = prepare(args, name, argv)
    for work in args.models:
        measure(work, args, run)
        if run.found:
            view.write(run)
        if run.interrupted:
            break
    run.clean()
    print(f"\n{view.table(run.found)}\n", flush=True)
    if run.out is not None and run.found:
        print(f"records: {run.out}; tables: {run.out.with_suffix('.md').name}")
    view.show(run.found, run.out)
    return 130 if run.interrupted else int(not run.found)


def measure_with_memory(
    child: str,  # "module:function"
    arguments: Callable[[str, int], tuple[Any, ...]],  # of the function, from a name and its number of turns
    turns: Mapping[str, int],  # by name
    args: argparse.Namespace,
    run: ChildRun,
) -> tuple[dict[str, ChildResult], dict[str, ChildResult]]:
    """What the children hand in when they are timed, and when their memory is measured: on a CPU that is in other
    processes, one after the other, which are not timed. By name, without those that failed."""
    timed = measure_children(child, arguments, turns, run, alone=args.alone, prime=not args.quick)
    if run.device == "cuda" or args.quick or run.interrupted:
        return timed, timed
    once = dict.fromkeys(timed, 1)
    return timed, measure_children(child, arguments, once, run, alone=True, exact_memory=True)


def draw_models(
    bars: Callable[[Records], list[plot.Bar]],
    titles: Callable[[Records], tuple[str, str]],  # what a reader should take away, and what was measured
    unit: str,  # of the bars
) -> Callable[[Records, Path], Iterable[str]]:
    """Draws one picture a model; `bars` and `titles` get the records of one model."""

    def draw(found: Records, path: Path) -> Iterable[str]:
        models = by_model(found)
        for model, records in models.items():
            target = path if len(models) == 1 else path.with_name(f"{path.stem}-{model.lower()}.json")
            yield plot.draw_stacked(bars(records), *titles(records), unit, target)

    return draw
