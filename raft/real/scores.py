"""Metrics of an evaluation's samples, per item and as means."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

DOMAIN = ("choice", "similarity", "recall", "f1", "rouge_l", "loglik", "words")
SETS = ("rephrased", "unseen")
METRICS = (
    *(f"domain_{which}_{measure}" for which in SETS for measure in DOMAIN),
    "ifeval_prompt_strict",
    "ifeval_instruction_strict",
    "arc_easy",
)

# Item id -> values: one per item, or one per instruction (up to three) of an IFEval prompt.
Values = dict[str, list[float]]


def values(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Values]:
    """Metric -> item id -> values, for the parts of an evaluation (`raft.real.evaluate`) in `samples`."""
    found: dict[str, Values] = {}
    for part in ("domain_answers", "domain_choice"):
        for sample in samples.get(part, ()):
            for measure in DOMAIN:
                if sample.get(measure) is not None:
                    metric = f"domain_{sample['set']}_{measure}"
                    found.setdefault(metric, {})[sample["id"]] = [float(sample[measure])]
    for sample in samples.get("ifeval", ()):
        followed = [float(value) for value in sample["strict"]]
        found.setdefault("ifeval_prompt_strict", {})[sample["id"]] = [min(followed)]
        found.setdefault("ifeval_instruction_strict", {})[sample["id"]] = followed
    for sample in samples.get("arc", ()):
        found.setdefault("arc_easy", {})[sample["id"]] = [sample["score"]]
    return {metric: found[metric] for metric in METRICS if metric in found}


def metrics(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[dict[str, float], dict[str, int]]:
    """The mean of each metric over its values, and the number of values."""
    flat = {metric: [v for vs in by_item.values() for v in vs] for metric, by_item in values(samples).items()}
    return {metric: fmean(v) for metric, v in flat.items()}, {metric: len(v) for metric, v in flat.items()}
