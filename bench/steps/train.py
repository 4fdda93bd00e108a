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
from collections.abc import Sequence
from typing import Any

from bench.common.children import ChildRun
from bench.common.plot import Bar
from bench.common.records import number
from bench.common.view import View
from bench.steps import providers
from bench.steps.command import draw_models, make_parser, measure_with_memory, run_models
from bench.steps.goals import best_ours, summary
from bench.steps.records import NOTES, PARTS, step_record, table
from bench.steps.work import Work

CHILD = "bench.steps.train_child:train"
TURN = 5  # steps of a turn, where a call of the engine feeds no more
QUICK_TURN = 3
UNTIMED = 1  # steps at the start of such a turn: a child that has waited has to fetch its memory again
# A child that never waits has turns of one step, all of them timed.


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("train", __doc__)
    parser.add_argument("--providers", default="", help="comma-separated, see bench/steps/providers.py")
    parser.add_argument("--steps", type=int, help="measured steps of each, at least (default: 16, quick 4)")
    args = parser.parse_args(argv)
    args.steps = args.steps or (4 if args.quick else 16)
    try:
        args.providers = args.providers.split(",") if args.providers else providers.defaults(args.quick)
        args.missing = {name: why for name in args.providers if (why := providers.check(name))}
    except ValueError as error:
        parser.error(f"--providers: {error}")
    return args


def main(argv: list[str]) -> int:
    return run_models(VIEW, "train", parse(argv), argv, measure)


def measure(work: Work, args: argparse.Namespace, run: ChildRun) -> None:
    names = [name for name in args.providers if name not in args.missing]
    every = {name: providers.steps_per_refresh(name) for name in names}
    least, waits = (1, 0) if args.alone else (QUICK_TURN if args.quick else TURN, UNTIMED)
    turn = {name: least if every[name] == 1 else every[name] for name in names}
    untimed = {name: waits if every[name] == 1 else 0 for name in names}
    # One turn to warm up, and two calls of the engine at least, however many steps each of them feeds.
    least_turns = {name: 1 if every[name] == 1 else 2 for name in names}
    turns = {name: 1 + max(least_turns[name], -(-args.steps // (turn[name] - untimed[name]))) for name in names}

    def arguments(name: str, turns: int) -> tuple[Any, ...]:
        return name, work, args.device, turn[name], turns

    timed, for_memory = measure_with_memory(CHILD, arguments, turns, args, run)
    for name, child in timed.items():
        steps = [step for taken in child.turns[1:] for step in taken[untimed[name] :]]
        final = for_memory[name].final if name in for_memory else None
        if len(steps) >= every[name]:
            found = step_record(
                name, work, run.device_name, child.about, final, steps, every[name], run.limit, run.command
            )
            run.found.append(found)


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


VIEW = View(table, NOTES, summary, draw_models(bars, titles, "milliseconds a step"))
