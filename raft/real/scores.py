"""Metrics of an evaluation's samples, per item and as means."""

from statistics import fmean

from raft.real.results import Samples, Values

DOMAIN = ("choice", "similarity", "recall", "f1", "rouge_l", "loglik", "words")
SETS = ("rephrased", "unseen")
METRICS = (
    *(f"domain_{which}_{measure}" for which in SETS for measure in DOMAIN),
    "ifeval_prompt_strict",
    "ifeval_instruction_strict",
    "arc_easy",
)


def values(samples: Samples) -> dict[str, Values]:
    """Metric -> item id -> values, for the parts of an evaluation that are in `samples`."""
    found: dict[str, Values] = {}
    for sample in (*samples.get("domain_answers", ()), *samples.get("domain_choice", ())):
        for measure in DOMAIN:
            if isinstance(value := sample.get(measure), int | float):
                metric = f"domain_{sample['set']}_{measure}"
                found.setdefault(metric, {})[sample["id"]] = [float(value)]
    for answer in samples.get("ifeval", ()):
        followed = [float(value) for value in answer["strict"]]
        found.setdefault("ifeval_prompt_strict", {})[answer["id"]] = [min(followed)]
        found.setdefault("ifeval_instruction_strict", {})[answer["id"]] = followed
    for choice in samples.get("arc", ()):
        found.setdefault("arc_easy", {})[choice["id"]] = [choice["score"]]
    return {metric: found[metric] for metric in METRICS if metric in found}


def metrics(samples: Samples) -> tuple[dict[str, float], dict[str, int]]:
    """The mean of each metric over its values, and the number of values."""
    flat = {metric: [v for vs in by_item.values() for v in vs] for metric, by_item in values(samples).items()}
    return {metric: fmean(v) for metric, v in flat.items()}, {metric: len(v) for metric, v in flat.items()}
