"""What the records of steps say: which of the project's goals are met, and how many times as fast as each peer."""

from collections.abc import Iterator, Sequence

from bench.common import goals as common
from bench.common.goals import Record, goal_line, ratio
from bench.steps.records import by_model, padding_percent

SAME_WORK = "-ce"


def summary(records: Sequence[Record]) -> list[str]:
    def lines(_model: str, found: list[Record]) -> Iterator[str]:
        named = {r["provider"]: r for r in found}
        yield from goals(named)
        yield from ratios(named)

    return common.summary(by_model(records), lines)


def best_ours(named: dict[str, Record]) -> Record | None:
    """The variant that a user gets: shared weights, or transformers where there is no vLLM."""
    return named.get("ours-shared") or named.get("ours-hf")


def goals(named: dict[str, Record]) -> Iterator[str]:
    shared, copied, ours = named.get("ours-shared"), named.get("ours-copied"), best_ours(named)
    yield goal_line(
        "<= 1", shared["refresh_percent"] if shared else None, "% of the step", "refresh with shared weights "
    )
    yield from memory_goals(shared, copied)
    pairs = [(packed, f"{packed}-unpacked") for packed in ("ours-shared", "ours-hf")]
    for packed, padded in pairs:
        if packed in named or padded in named:
            found = ratio(named.get(padded), named.get(packed), "ms_p50")
            yield goal_line(">= 1.5", found, f"x faster than {padded}", f"{packed}, packed step ")
    peers = [name for name in named if name.endswith(SAME_WORK)]
    name = ours["provider"] if ours else "ours"
    for peer in peers or ["TRL"]:
        found = ratio(named.get(peer), ours, "ms_p50")
        yield goal_line(">= 2", found, f"x faster than {peer} on the same work", f"{name}, whole step ")
    yield from real_goals(named, ours)
    wasted = ours["padding"]["teacher"] + ours["padding"]["student"] if ours else None
    yield goal_line("<= 0", wasted, "padding tokens a step in the forwards of teacher and student", f"{name} ")


def real_goals(named: dict[str, Record], ours: Record | None) -> Iterator[str]:
    """Against TRL as it comes: its distillers have no cross-entropy, so a user has to run its SFTTrainer as well."""
    sft, peer = named.get("ours-sft"), named.get("trl-sft")
    if sft is None or peer is None:
        return
    yield goal_line("<= 1", ratio(sft, peer, "ms_p50"), "x the time of trl-sft", "ours-sft ")
    yield goal_line("<= 1", ratio(sft, peer, "peak_mib"), "x the peak memory of trl-sft", "ours-sft ")
    for name in ("trl-sdft", "trl-distillation"):
        if ours and (distiller := named.get(name)):
            both = ours["ms_p50"] / (distiller["ms_p50"] + peer["ms_p50"])
            yield goal_line("<= 0.6", both, f"x the time of {name} and trl-sft together", f"{ours['provider']} ")
            found = ratio(ours, distiller, "peak_mib")
            yield goal_line("<= 1", found, f"x the peak memory of {name}", f"{ours['provider']} ")


def memory_goals(shared: Record | None, copied: Record | None) -> Iterator[str]:
    """Of the peak of the process, and of the bytes of all parameters, which no allocator changes."""

    def saved(key: str) -> float | None:
        if not shared or not copied or shared[key] is None or copied[key] is None:
            return None
        return (copied[key] - shared[key]) / shared["student_mib"]

    unit = "copies of the student"
    # A process's resident memory moves by a MiB or two from run to run.
    yield goal_line(">= 0.95", saved("peak_mib"), unit, "shared weights lower the peak below copied ones by ")
    yield goal_line(">= 1", saved("parameter_mib"), unit, "shared weights lower what all parameters hold by ")


def ratios(named: dict[str, Record]) -> Iterator[str]:
    ours = best_ours(named)
    if ours is None:
        return
    others = {name: r for name, r in named.items() if r is not ours}
    if others:
        times = ", ".join(
            f"vs {name} {r['ms_p50'] / ours['ms_p50']:.2f} times a step and "
            f"{r['ms_per_1000_tokens'] / ours['ms_per_1000_tokens']:.2f} a student token"
            for name, r in others.items()
        )
        yield f"{ours['provider']} {times} as fast"
    for packed in ("ours-shared", "ours-hf"):
        pair = named.get(packed), named.get(f"{packed}-unpacked")
        if pair[0] and pair[1]:
            there, here = (
                sum(r["seconds"][part] for part in ("teacher", "forward_backward")) for r in (pair[1], pair[0])
            )
            yield (
                f"{packed}: packing makes teacher and training together {there / here:.2f} times as fast; "
                "padding of all that passes through the layers, rollouts included, is "
                f"{padding_percent(pair[1]):.0f} % without it, {padding_percent(pair[0]):.0f} % with it"
            )
    for name, r in named.items():
        if name.startswith(f"{ours['provider']}-r"):
            fewer = ours["seconds"]["rollout"] / r["seconds"]["rollout"]
            age = r["steps_per_refresh"] - 1
            yield (
                f"{name}: rollouts {fewer:.2f} times as fast as in {ours['provider']}, up to {age} steps old when used"
            )
