"""The engines side by side: how fast they start, generate and take new weights, and what they hold in memory.

python -m bench rollout              on a CPU a model of 16M parameters, on a GPU the shapes of three models of 3B
python -m bench rollout --quick      a minute, on a tiny model, without vLLM: that it runs, not how fast it is
python -m bench rollout --records bench/results/rollout-cpu.json    table, ratios and picture of an earlier run

Each engine has a process of its own and holds a model as a trainer does. A turn is one call with prompts of mixed
lengths, then new weights in the model (not timed), then a refresh.
Writes rollout-<device>.json (records), .md (tables) and .svg to bench/results; --quick writes only where --out says.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from bench.children import Measured, Run, make_parser, measure_children
from bench.goals import goal_line, ratio
from bench.machine import PACKAGES
from bench.publish import View
from bench.records import digits, number, origin
from bench.stacked import Bar
from bench.step_goals import memory_goals
from bench.step_records import by_model
from bench.step_setup import vllm_installed
from bench.work import Work

ENGINES = {"vllm-shared": "shared", "vllm-copied": "copied", "hf": "hf"}
CHILD = "bench.rollout_child:rollout"
PASSES = ("construct", "generate", "refresh")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("rollout", __doc__)
    parser.add_argument("--providers", default="", help=f"comma-separated, of {', '.join(ENGINES)}")
    parser.add_argument("--prompts", type=int, help="prompts of a call (default: 64, quick 8)")
    parser.add_argument("--eager", action="store_true", help="vLLM without CUDA graphs")
    parser.add_argument("--reps", type=int, help="measured calls of each (default: 10, quick 3)")
    args = parser.parse_args(argv)
    args.prompts = args.prompts or (8 if args.quick else 64)
    args.reps = args.reps or (3 if args.quick else 10)
    default = ["hf"] if args.quick else list(ENGINES)
    args.providers = args.providers.split(",") if args.providers else default
    if unknown := sorted(set(args.providers) - set(ENGINES)):
        parser.error(f"--providers: {', '.join(unknown)} unknown; there are {', '.join(ENGINES)}")
    absent = [name for name in args.providers if name != "hf" and not vllm_installed()]
    args.missing = dict.fromkeys(absent, "vllm is not installed")
    return args


def main(argv: list[str]) -> int:
    return VIEW.run("rollout", parse(argv), argv, measure)


def measure(work: Work, args: argparse.Namespace, run: Run) -> None:
    names = [name for name in args.providers if name not in args.missing]
    turns = dict.fromkeys(names, 1 + args.reps)  # one to warm up

    def arguments(turns: int) -> Callable[[str], tuple[Any, ...]]:
        return lambda name: (ENGINES[name], work, args.device, args.prompts, args.eager, turns)

    timed = measure_children(names, CHILD, arguments(1 + args.reps), turns, run, alone=args.alone, prime=not args.quick)
    again = timed
    if args.device == "cpu" and not args.quick and not run.interrupted:
        once = dict.fromkeys(timed, 1)
        again = measure_children(list(timed), CHILD, arguments(1), once, run, alone=True, exact_memory=True)
    for name, child in timed.items():
        if len(child.turns) > 1:
            run.found += rollout_records(name, work, child, again.get(name), args.prompts, run)


def rollout_records(
    name: str, work: Work, child: Measured, for_memory: Measured | None, prompts: int, run: Run
) -> Iterator[dict[str, Any]]:
    """One for each pass. Percentiles of the construction are its one value."""
    turns, about = child.turns[1:], child.about
    times = {
        "construct": [about["construct_s"]],
        "generate": [turn["generate_s"] for turn in turns],
        "refresh": [turn["refresh_s"] for turn in turns],
    }
    tokens = float(np.mean([turn["tokens"] for turn in turns]))
    held: dict[str, Any] = {"construct_peak_mib": None, "peak_mib": None, "parameter_mib": None}
    held["greedy_agreement"] = (child.final or {}).get("greedy_agreement")
    if for_memory is not None:
        held |= for_memory.about | (for_memory.final or {})
    peaks = {"construct": held["construct_peak_mib"], "generate": held["peak_mib"], "refresh": held["peak_mib"]}
    for name_of_pass in PASSES:
        p20, p50, p80 = (digits(1e3 * float(np.quantile(times[name_of_pass], q))) for q in (0.2, 0.5, 0.8))
        yield {
            "op": "rollout",
            "pass": name_of_pass,
            "provider": name,
            "weights": about["weights"],
            "device": run.device_name,
            "model": work.name,
            "parameters": about["parameters"],
            "n": prompts,
            "h": work.config["hidden_size"],
            "v": work.vocabulary,
            "k": work.k,
            "dtype": work.dtype,
            "regime": "log-normal prompts, geometric rollouts",
            "ms_p20": p20,
            "ms_p50": p50,
            "ms_p80": p80,
            "tokens": digits(tokens),
            "tokens_per_second": digits(1e3 * tokens / p50) if name_of_pass == "generate" else None,
            "peak_mib": None if peaks[name_of_pass] is None else digits(peaks[name_of_pass]),
            "parameter_mib": held["parameter_mib"],
            "student_mib": about["student_mib"],
            "greedy_agreement": held["greedy_agreement"],
            "threads": about["threads"],
            **origin(run.limit, run.command, PACKAGES),
        }


HEAD = (
    "| engine | weights | generate p20 ms | p50 | p80 | tokens | tokens/s | refresh p20 ms | p50 | p80 | construct s "
    "| peak, constructing, MiB | peak, generating, MiB | parameters, MiB | greedy tokens as transformers' |"
)
NOTES = """\
One call of the engine with all prompts, and one refresh after the model got new weights. Tokens are those drawn in a
call. Peaks are of the whole process: libraries, the model, the engine and its KV cache (which vLLM reserves at its
start, for as many sequences as there are prompts). On a CPU they come from a process of its own, which is not timed,
and in which whatever is freed goes back to the system at once. Parameters are those of all models in the process,
each storage counted once. `hf` generates with the model itself, so its refresh does nothing. The last column is the
share of greedy tokens, up to the first that differs, that transformers gives too: 1 in fp32, less in half precision,
where two tokens may be as good."""


def table(records: Sequence[dict[str, Any]]) -> str:
    parts = []
    for model, found in by_model(records).items():
        first = found[0]
        parts.append(
            f"**{model}**, {first['parameters'] / 1e6:,.1f} M parameters, {first['dtype']}, {first['n']} prompts, "
            f"{first['device']}\n"
        )
        lines = [HEAD, "|---|---|" + "---:|" * 13]
        for name, (construct, generate, refresh) in by_engine(found).items():
            cells = [name, generate["weights"], *_times(generate), number(generate["tokens"])]
            cells += [number(generate["tokens_per_second"]), *_times(refresh), number(construct["ms_p50"] / 1e3)]
            cells += [number(construct["peak_mib"]), number(generate["peak_mib"]), number(generate["parameter_mib"])]
            cells.append(number(generate.get("greedy_agreement")))
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts).rstrip()


def _times(record: dict[str, Any]) -> list[str]:
    return [number(record[name]) for name in ("ms_p20", "ms_p50", "ms_p80")]


def by_engine(records: Sequence[dict[str, Any]]) -> dict[str, tuple[dict[str, Any], ...]]:
    """Provider -> its records in the order of PASSES."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for r in records:
        found.setdefault(r["provider"], {})[r["pass"]] = r
    return {name: tuple(passes[p] for p in PASSES) for name, passes in found.items()}


def summary(records: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for model, found in by_model(records).items():
        generate = {name: passes[1] for name, passes in by_engine(found).items()}
        refresh = {name: passes[2] for name, passes in by_engine(found).items()}
        shared, copied = generate.get("vllm-shared"), generate.get("vllm-copied")
        mine = [*memory_goals(shared, copied)]
        share = ratio(refresh.get("vllm-shared"), shared, "ms_p50")
        mine.append(goal_line("<= 1", share and 100 * share, "% of the generation alone", "refresh of shared weights "))
        if shared:
            others = {name: r for name, r in generate.items() if name != "vllm-shared"}
            rate = shared["tokens_per_second"]
            mine += [
                f"vllm-shared vs {name}: {rate / r['tokens_per_second']:.2f} times as many tokens/s"
                for name, r in others.items()
            ]
            if "vllm-copied" in refresh:
                times = refresh["vllm-copied"]["ms_p50"] / refresh["vllm-shared"]["ms_p50"]
                mine.append(f"refresh of shared weights {times:.1f} times as fast as of copied ones")
        lines += [f"{model}: {line}" for line in mine]
    return lines


def bars(records: Sequence[dict[str, Any]]) -> list[Bar]:
    """Microseconds a token, since engines draw different tokens and so different numbers of them."""
    drawn = []
    for name, (_, generate, refresh) in by_engine(records).items():
        scale = 1e3 / generate["tokens"]
        extra = refresh["ms_p50"]
        drawn.append(
            Bar(
                label=name,
                under=f"weights {generate['weights']}",
                parts={"generate": scale * generate["ms_p50"], "refresh": scale * extra},
                low=scale * (generate["ms_p20"] + extra),
                high=scale * (generate["ms_p80"] + extra),
                note=f"{number(generate['tokens_per_second'])} tokens/s",
                strong=name == "vllm-shared",
            )
        )
    return drawn


def titles(records: Sequence[dict[str, Any]]) -> tuple[str, str]:
    first, generate = records[0], {name: passes[1] for name, passes in by_engine(records).items()}
    title = "Rollouts of a model in training"
    if "vllm-shared" in generate and "hf" in generate:
        times = generate["vllm-shared"]["tokens_per_second"] / generate["hf"]["tokens_per_second"]
        title += f": vLLM on shared weights {times:.1f} times as fast as transformers"
    return title, f"{first['model']}, {first['dtype']}, {first['n']} prompts a call, {first['device']}; p20 to p80"


VIEW = View(table, NOTES, summary, bars, titles, unit="microseconds a token drawn")
