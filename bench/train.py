"""A whole training step, part by part, of this trainer's variants and of TRL's trainers on the same rows.

python -m bench train              on a CPU a model of 16M parameters, on a GPU the shapes of three models of 3B
python -m bench train --quick      a minute, on a tiny model, without vLLM: that it runs, not how fast it is
python -m bench train --providers ours-shared,trl-sdft --steps 48
python -m bench train --model FOLDER --data FILE    a checkpoint, 8 of its rows a step, rollouts of 64 tokens, in fp32
python -m bench train --records bench/results/train-cpu.json    table, goals and picture of an earlier run

Each provider trains in a process of its own. On a CPU they take turns of a few steps, the first of which is not timed;
on a GPU, where they would not fit side by side, they run one after the other (--alone does so on a CPU). On a CPU each
then runs once more for its peak of memory. With all providers that takes some 40 minutes on two cores and 20 GiB.
Writes train-<device>.json (records), .md (tables) and .svg to bench/results; --quick writes only where --out says.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench import step_providers
from bench.children import Run, make_parser, measure_children
from bench.publish import View
from bench.records import number
from bench.stacked import Bar
from bench.step_goals import best_ours, summary
from bench.step_records import NOTES, PARTS, step_record, table
from bench.work import Work

CHILD = "bench.train_child:train"
TURN = 5  # steps of a turn, where a call of the engine feeds no more
QUICK_TURN = 3
UNTIMED = 1  # steps at the start of such a turn: a child that has waited has to fetch its memory again
# A child that never waits has turns of one step, and no need of such.


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("train", __doc__)
    parser.add_argument("--providers", default="", help="comma-separated, see bench/step_providers.py")
    parser.add_argument("--steps", type=int, help="measured steps of each, at least (default: 16, quick 4)")
    args = parser.parse_args(argv)
    args.steps = args.steps or (4 if args.quick else 16)
    try:
        args.providers = args.providers.split(",") if args.providers else step_providers.defaults(args.quick)
        args.missing = {name: why for name in args.providers if (why := step_providers.check(name))}
    except ValueError as error:
        parser.error(f"--providers: {error}")
    return args


def main(argv: list[str]) -> int:
    return VIEW.run("train", parse(argv), argv, measure)


def measure(work: Work, args: argparse.Namespace, run: Run) -> None:
    names = [name for name in args.providers if name not in args.missing]
    every = {name: step_providers.steps_per_refresh(name) for name in names}
    least, waits = (1, 0) if args.alone else (QUICK_TURN if args.quick else TURN, UNTIMED)
    turn = {name: least if every[name] == 1 else every[name] for name in names}
    untimed = {name: waits if every[name] == 1 else 0 for name in names}
    # One turn to warm up, and two calls of the engine at least, however many steps each of them feeds.
    least_turns = {name: 1 if every[name] == 1 else 2 for name in names}
    turns = {name: 1 + max(least_turns[name], -(-args.steps // (turn[name] - untimed[name]))) for name in names}

    def arguments(turns: Mapping[str, int]) -> Callable[[str], tuple[Any, ...]]:
        return lambda name: (name, work, args.device, turn[name], turns[name])

    timed = measure_children(names, CHILD, arguments(turns), turns, run, alone=args.alone, prime=not args.quick)
    finals = {name: child.final for name, child in timed.items()}
    if args.device == "cpu" and not args.quick and not run.interrupted:
        once = dict.fromkeys(timed, 1)
        again = measure_children(list(timed), CHILD, arguments(once), once, run, alone=True, exact_memory=True)
        finals = {name: again[name].final if name in again else None for name in timed}
    for name, child in timed.items():
        steps = [step for taken in child.turns[1:] for step in taken[untimed[name] :]]
        if len(steps) >= every[name]:
            run.found.append(
                step_record(
                    name, work, run.device_name, child.about, finals[name], steps, every[name], run.limit, run.command
                )
            )


def bars(records: Sequence[dict[str, Any]]) -> list[Bar]:
    return [
        Bar(
            label=r["provider"],
            under=f"{r['generation']}, {r['weights']}",
            parts={name: 1e3 * r["seconds"][name] for name in PARTS},
            low=r["ms_p20"],
            high=r["ms_p80"],
            note=f"{number(r['ms_p50'])}" + ("" if r["peak_mib"] is None else f", {r['peak_mib'] / 1024:.2f} GiB"),
            strong=r["provider"].startswith("ours"),
        )
        for r in records
    ]


def titles(records: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """What a reader should take away, and what was measured."""
    first, named = records[0], {r["provider"]: r for r in records}
    ours = best_ours(named)
    peers = [r for name, r in named.items() if name.endswith("-ce")] or [
        r for name, r in named.items() if name.startswith("trl")
    ]
    title = "One training step"
    if ours and peers:
        best = min(peers, key=lambda r: r["ms_p50"])
        times = best["ms_p50"] / ours["ms_p50"]
        title += f": {ours['provider']} is {times:.1f} times as fast as {best['provider']}"
    where = (
        f"{first['model']}, {first['dtype']}, {first['batch']} rows a step, {first['device']}; whisker p20 to p80, "
        "behind it p50 and peak memory; work differs, see the table's notes"
    )
    return title, where


VIEW = View(table, NOTES, summary, bars, titles, unit="milliseconds a step")
