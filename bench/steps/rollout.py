"""The engines side by side: how fast they start, generate and take new weights, and what they hold in memory.

python -m bench rollout              on a CPU a model of 16M parameters, on a GPU the shapes of three models of 3B
python -m bench rollout --quick      a minute, on a tiny model, without vLLM: that it runs, not how fast it is
python -m bench rollout --records bench/results/rollout-cpu.json    table, ratios and picture of an earlier run

Each engine has a process of its own and holds a model as a trainer does. A turn is one call with prompts of mixed
lengths, then new weights in the model (not timed), then a refresh.
Writes rollout-<device>.json (records), .md (tables) and .svg to bench/results; --quick writes only where --out says.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from bench.common import goals
from bench.common.children import ChildResult, ChildRun
from bench.common.goals import goal_line, ratio
from bench.common.measure import percentiles
from bench.common.options import choose
from bench.common.plot import Bar
from bench.common.records import digits, grouped, number, origin
from bench.common.records import table as markdown
from bench.common.view import View
from bench.steps.command import draw_models, make_parser, measure_with_memory, run_models
from bench.steps.goals import memory_goals
from bench.steps.records import by_model, model_fields
from bench.steps.setup import vllm_installed
from bench.steps.work import Work

ENGINES = {"vllm-shared": "shared", "vllm-copied": "copied", "hf": "hf"}
CHILD = "bench.steps.rollout_child:rollout"
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
    args.providers = choose(parser, "--providers", args.providers or ("hf" if args.quick else None), ENGINES)
    absent = [name for name in args.providers if name != "hf" and not vllm_installed()]
    args.missing = dict.fromkeys(absent, "vllm is not installed")
    return args


def main(argv: list[str]) -> int:
    return run_models(VIEW, "rollout", parse(argv), argv, measure)


def measure(work: Work, args: argparse.Namespace, run: ChildRun) -> None:
    def arguments(name: str, turns: int) -> tuple[Any, ...]:
        return ENGINES[name], work, args.device, args.prompts, args.eager, turns

    # One turn to warm up.
    turns = {name: 1 + args.reps for name in args.providers if name not in args.missing}
    timed, for_memory = measure_with_memory(CHILD, arguments, turns, args, run)
    for name, child in timed.items():
        if len(child.turns) > 1:
            run.found += rollout_records(name, work, child, for_memory.get(name), args.prompts, run)


def rollout_records(
    name: str, work: Work, child: ChildResult, for_memory: ChildResult | None, prompts: int, run: ChildRun
) -> Iterator[dict[str, Any]]:
    """One for each pass. Percentiles of the construction are its one value."""
    turns, about = child.turns[1:], child.about
    times = {name: [turn[f"{name}_s"] for turn in turns] for name in ("generate", "refresh")}
    times["construct"] = [about["construct_s"]]
    tokens = statistics.fmean(turn["tokens"] for turn in turns)
    held: dict[str, Any] = dict(child.final or {})
    if for_memory is not None:
        held |= for_memory.about | (for_memory.final or {})
    for name_of_pass in PASSES:
        peak = held.get("construct_peak_mib" if name_of_pass == "construct" else "peak_mib")
        p20, p50, p80 = (digits(1e3 * seconds) for seconds in percentiles(times[name_of_pass]))
        yield {
            "op": "rollout",
            "pass": name_of_pass,
            "provider": name,
            "device": run.device_name,
            **model_fields(work, about),
            "n": prompts,
            "regime": "log-normal prompts, geometric rollouts",
            "ms_p20": p20,
            "ms_p50": p50,
            "ms_p80": p80,
            "tokens": digits(tokens),
            "tokens_per_second": digits(1e3 * tokens / p50) if name_of_pass == "generate" else None,
            "peak_mib": None if peak is None else digits(peak),
            "parameter_mib": held.get("parameter_mib"),
            "greedy_agreement": held.get("greedy_agreement"),
            **origin(run.limit, run.command),
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
            f"{first['device']}"
        )
        rows = []
        for name, (construct, generate, refresh) in by_engine(found).items():
            cells = [name, generate["weights"], *_times(generate), number(generate["tokens"])]
            cells += [number(generate["tokens_per_second"]), *_times(refresh), number(construct["ms_p50"] / 1e3)]
            cells += [number(construct["peak_mib"]), number(generate["peak_mib"]), number(generate["parameter_mib"])]
            rows.append([*cells, number(generate.get("greedy_agreement"))])
        parts.append(markdown(HEAD, 2, rows))
    return "\n\n".join(parts)


def _times(record: dict[str, Any]) -> list[str]:
    return [number(record[name]) for name in ("ms_p20", "ms_p50", "ms_p80")]


def by_engine(records: Sequence[dict[str, Any]]) -> dict[str, tuple[dict[str, Any], ...]]:
    """Provider -> its records in the order of PASSES."""
    engines = grouped(sorted(records, key=lambda r: PASSES.index(r["pass"])), lambda r: r["provider"])
    return {name: tuple(found) for name, found in engines.items()}


def summary(records: Sequence[dict[str, Any]]) -> list[str]:
    return goals.summary(by_model(records), lambda _, found: _lines(found))


def _lines(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Goals and ratios of one model."""
    generate, refresh = ({r["provider"]: r for r in found if r["pass"] == name} for name in ("generate", "refresh"))
    shared, copied = generate.get("vllm-shared"), generate.get("vllm-copied")
    yield from memory_goals(shared, copied)
    share = ratio(refresh.get("vllm-shared"), shared, "ms_p50")
    yield goal_line("<= 1", share and 100 * share, "% of the generation alone", "refresh of shared weights ")
    if shared:
        for name, r in generate.items():
            if name != "vllm-shared":
                times = shared["tokens_per_second"] / r["tokens_per_second"]
                yield f"vllm-shared vs {name}: {times:.2f} times as many tokens/s"
    if shared and copied:
        times = refresh["vllm-copied"]["ms_p50"] / refresh["vllm-shared"]["ms_p50"]
        yield f"refresh of shared weights {times:.1f} times as fast as of copied ones"


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
    first, generate = records[0], {r["provider"]: r for r in records if r["pass"] == "generate"}
    title = "Rollouts of a model in training"
    if "vllm-shared" in generate and "hf" in generate:
        times = generate["vllm-shared"]["tokens_per_second"] / generate["hf"]["tokens_per_second"]
        title += f": vLLM on shared weights {times:.1f} times as fast as transformers"
    return title, f"{first['model']}, {first['dtype']}, {first['n']} prompts a call, {first['device']}; p20 to p80"


VIEW = View(table, NOTES, summary, draw_models(bars, titles, "microseconds a token drawn"))
