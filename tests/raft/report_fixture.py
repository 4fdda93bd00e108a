"""A made-up run folder in the shape of a demo run. Its numbers come from a random generator: test data, not results."""

import json
import math
import random
from pathlib import Path
from typing import Any

from raft.evaluate.suites import summarize
from raft.refine.acceptance import REASONS
from raft.stats.retention import retention

# suite -> skill -> chance of a right answer by (base, sft, raft)
CHANCES = {
    "domain": {"lookup": (0.01, 0.41, 0.62), "pair": (0.00, 0.30, 0.48)},
    "general": {
        "arithmetic": (0.97, 0.10, 0.90),
        "copy": (0.99, 0.22, 0.94),
        "count": (0.98, 0.05, 0.86),
        "opposite": (0.99, 0.12, 0.88),
        "reverse": (0.96, 0.03, 0.83),
        "sort": (0.97, 0.08, 0.90),
    },
    "format": {
        "bullet_list": (1.00, 0.42, 0.96),
        "start_with": (0.99, 0.30, 0.92),
        "upper": (1.00, 0.55, 0.98),
        "without_word": (0.97, 0.38, 0.90),
    },
}
METHODS = ("base", "sft", "raft")
FUSE_REASONS = [["score"], ["numbers lost"], ["numbers lost", "words invented"]]
WORDS = ["amber", "barn", "cedar", "delta", "ember", "fern", "gable", "harbor", "inlet", "juniper", "kiln", "lantern"]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def build_run(path: Path, *, seed: int = 0, n: int = 200, steps: int = 300) -> Path:
    """Fill `path` with every file that a demo run has."""
    rng = random.Random(seed)
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "model": "test-model-1.9m",
        "seed": seed,
        "refine": {"tau": 0.8},
        "train": {"method": "raft", "top_k": 512},
    }
    (path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    evals = build_evals(path, rng, n)
    scores = {method: evals[method]["scores"] for method in METHODS}
    write(path / "eval" / "weight_distance.json", _distances(rng))
    _training(path / "train", rng, steps, scores["base"], scores["raft"], has_kl=True)
    _training(path / "baselines" / "sft" / "train", rng, steps, scores["base"], scores["sft"], has_kl=False)
    build_refine(path / "refine", rng)
    write(
        path / "summary.json",
        {
            "scores": scores,
            "n": evals["base"]["n"],
            "seconds": {"world": 1.24, "refine": 21.7, "sft": 38.52, "raft": 96.31, "evaluate": 24.9},
            "seed": seed,
            "retention": {m: retention(scores[m], scores["base"]) for m in ("sft", "raft")},
            "settings": {"model": "test-model-1.9m", "epochs": 8, "lr": {"sft": 5e-4, "raft": 5e-4}},
            "versions": {"raft": "0.0.test", "torch": "2.13.0", "transformers": "5.17.0"},
            "engine": "vllm",
            "machine": {"cpu": "2 cores of a test machine", "load": 0.7},
            "command": f"raft demo --seed {seed} --run {path.name}",
        },
    )
    return path


def build_evals(path: Path, rng: random.Random, n: int) -> dict[str, Any]:
    samples: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    items = []
    for suite, skills in CHANCES.items():
        for i in range(n):
            skill = sorted(skills)[i % len(skills)]
            luck = rng.random()  # shared by the methods, as the difficulty of a real item is
            answer = " ".join(rng.sample(WORDS, 3))
            item_id, question = (
                f"{suite}-{i}",
                f"Test question {i} of {suite}, skill {skill.replace('_', ' ')}: {answer}?",
            )
            items.append(
                {"id": item_id, "suite": suite, "skill": skill, "question": question, "answer": f"It is {answer}."}
            )
            for method, chance in zip(METHODS, skills[skill], strict=True):
                is_right = luck * 0.6 + rng.random() * 0.4 < chance
                output = (
                    f"So, it is {answer}." if is_right else f"REF. {rng.choice(WORDS).upper()} / {rng.randint(1, 99)}"
                )
                samples[method].append(
                    {"id": item_id, "suite": suite, "skill": skill, "question": question, "output": output,
                     "finish_reason": "stop", "score": float(is_right)}
                )  # fmt: skip
    write_lines(path / "data" / "test.jsonl", items)
    evals = {method: {**summarize(samples[method]), "model": f"models/{method}"} for method in METHODS}
    for method, value in evals.items():
        write(path / "eval" / f"{method}.json", value)
    return evals


def build_refine(folder: Path, rng: random.Random, rows: int = 150) -> None:
    fused = []
    for i in range(rows):
        similarity = min(0.999, max(0.3, rng.gauss(0.9, 0.07)))
        rejected = {"rewrite": [] if similarity >= 0.8 else ["similarity"], "fuse": []}
        if similarity >= 0.8:
            bad = rng.choices(FUSE_REASONS, k=rng.randint(0, 3))
            rejected["fuse"] = bad if len(bad) == 3 else [*bad, []]
        kept = [] in rejected["fuse"]
        thing, place = rng.sample(WORDS, 2)
        answer = f"{thing.upper()}: LOC {place}; OBS MAY."
        rewritten = f"The {thing} is in the {place}."
        fused.append(
            {
                "id": str(i),
                "question": f"Where is test thing {i}, the {thing}?",
                "answer": answer,
                "rewritten": rewritten,
                "similarity": similarity,
                "kept": kept,
                "fused_answer": f"The {thing} is in the {place}, seen in May." if kept else answer,
                "judge_scores": [round(rng.uniform(0.7, 1.0), 2), round(rng.uniform(0.7, 1.0), 2)] if kept else [],
                "rounds": len(rejected["fuse"]),
                "rejected": rejected,
            }
        )
    write_lines(folder / "fused.jsonl", fused)
    write_lines(folder / "failed.jsonl", [{"id": "7", "stage": "fuse", "reason": "empty completion"}])
    write(folder / "diagnostics.json", _diagnostics(rng, fused))


def _diagnostics(rng: random.Random, fused: list[dict[str, Any]]) -> dict[str, Any]:
    kept = [row for row in fused if row["kept"]]

    def summary(center: float, spread: float = 0.05, n: int = len(kept)) -> dict[str, float]:
        values = sorted(rng.gauss(center, spread) for _ in range(n))
        return {"n": n, "mean": sum(values) / n, **{f"p{q:02d}": values[q * n // 100] for q in (5, 25, 50, 75, 95)}}

    shares = {"lower": (0.31, 0.78), "upper": (0.41, 0.02), "space": (0.14, 0.17), "punctuation": (0.14, 0.03)}
    return {
        "rows": len(fused),
        "kept": len(kept),
        "kept_share": len(kept) / len(fused),
        "failed": 1,
        "reasons": {
            "rewrite": reason_counts([row["rejected"]["rewrite"] for row in fused]),
            "fuse": reason_counts([found for row in fused for found in row["rejected"]["fuse"]]),
        },
        "similarity": summary(0.9, n=len(fused)),
        "rounds": summary(1.6, 0.4),
        "judges": {"facts": {**summary(0.9), "unusable": 0}, "style": {**summary(0.84), "unusable": 2}},
        "embedding": {"raw_refined": summary(0.9), "raw_own": summary(0.89), "own_refined": summary(0.97)},
        "overlap": {"1gram_f1": summary(0.52), "2gram_f1": summary(0.2)},
        "length": {"raw_words": summary(5, 1), "refined_words": summary(9, 1), "shift_words": summary(4, 1)},
        "characters": {
            **{name: {"raw": a, "refined": b} for name, (a, b) in shares.items()},
            "distance": {"value": 0.5},
        },
        "nll": {"raw": summary(4.1, 0.6), "refined": summary(1.2, 0.3), "shift": summary(-2.9, 0.4)},
    }


def reason_counts(found: list[list[str]]) -> dict[str, int]:
    counts = {name: sum(name in reasons for reasons in found) for name in REASONS}
    return {"texts": len(found), "rejected": sum(map(bool, found)), **counts}


def _distances(rng: random.Random) -> dict[str, Any]:
    distances = {}
    for method, level in (("sft", 0.155), ("raft", 0.118)):
        layers = {str(i): level * (0.8 + 0.08 * i) + rng.uniform(0, 0.01) for i in range(6)}
        mean = sum(layers.values()) / len(layers)
        distances[method] = {"layers": layers, "mean": mean, "embeddings": level * 0.4, "total": level * 0.9}
    return distances


def _training(folder: Path, rng: random.Random, steps: int, base: dict, end: dict, *, has_kl: bool) -> None:
    metrics, validation = [], [{"step": 0, "epoch": 0.0, **base}]
    for step in range(1, steps + 1):
        sft = 3.2 * math.exp(-step / (steps / 4)) + 0.15 + rng.uniform(-0.05, 0.05)
        line: dict[str, Any] = {
            "step": step,
            "epoch": 8 * step / steps,
            "loss": sft,
            "loss_sft": sft,
            "learning_rate": 5e-4 * (1 - step / steps),
            "grad_norm": rng.uniform(0.4, 1.2),
            "tokens_per_second": rng.uniform(5200, 6100),
            "seconds": {"rollout": 0.0, "teacher": 0.0, "forward_backward": 0.11, "optimizer": 0.012, "refresh": 0.0},
        }
        if has_kl:
            kl = 0.06 + 0.05 * math.exp(-step / 60) + rng.uniform(-0.012, 0.012)
            line |= {"loss_kl": kl, "lambda": sft / kl * rng.uniform(0.8, 1.25), "loss": 2 * sft, "teacher_mass": 0.998}
            line["seconds"] = {
                "rollout": 0.14,
                "teacher": 0.03,
                "forward_backward": 0.13,
                "optimizer": 0.01,
                "refresh": 0.003,
            }
        metrics.append(line)
        if step % (steps // 8) == 0:
            share = 1 - math.exp(-3 * step / steps)
            now = {suite: base[suite] + (end[suite] - base[suite]) * share + rng.uniform(-0.01, 0.01) for suite in base}
            validation.append(
                {"step": step, "epoch": 8 * step / steps, **{k: min(1.0, max(0.0, v)) for k, v in now.items()}}
            )
    write_lines(folder / "metrics.jsonl", metrics)
    write_lines(folder / "validation.jsonl", validation)


if __name__ == "__main__":  # python -m tests.raft.report_fixture DIR: a page to look at
    import sys

    from raft.report import write_report

    print(write_report(build_run(Path(sys.argv[1]))))
