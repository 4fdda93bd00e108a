"""The balances between the two losses, compared on the micro-world.

    python -m studies.microworld.balance --runs DIR --out results/microworld/balance.json

For each seed, RAFT is trained with each balance on the same refined answers, with the demo's learning rate and epochs,
and scored on the test split. A validation after every second epoch shows what each has forgotten at the point where all
have learned equally much.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raft.cpu import share_cpu
from raft.demo.comparison import SUITES
from raft.demo.settings import DOMAIN, DemoSettings
from raft.demo.stages import Stages
from raft.evaluate.curve import at_common_level
from raft.progress import say
from raft.runs import Run, read_json, read_jsonl, write_json
from raft.runs.provenance import provenance
from raft.stats.intervals import over_seeds

# Name -> fields of RAFTConfig.
BALANCES: dict[str, dict[str, Any]] = {
    "ema": {"balance": "ema"},
    "gradient": {"balance": "gradient"},
    "fixed": {"balance": "fixed", "fixed_lambda": 1.0},
}


def run_seed(run: Run, seed: int) -> None:
    """Writes seed.json: balance -> {"scores", "curve", "lambda"}."""
    path = run.path / "seed.json"
    if path.exists():
        return
    settings = DemoSettings()
    stages = Stages(run, DOMAIN, seed, settings)
    found: dict[str, Any] = {}
    for name, switches in BALANCES.items():
        folder = Run(run.path / name)
        say(f"seed {seed}: {name}")
        stages.train("raft", settings.raft, folder, **switches)
        lines = read_jsonl(folder.train_dir / "metrics.jsonl")
        found[name] = {
            "scores": stages.evaluate(name, folder.model_dir)["scores"],
            "curve": read_jsonl(folder.train_dir / "validation.jsonl"),  # the first point is before the first step
            "lambda": [line["lambda"] for line in lines],
        }
        say(f"      {found[name]['scores']}")
    stages.engine.close()
    write_json(path, found)


def collect(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Balance -> suite -> {"mean", "std", "seeds"}. SUITE_at_level: the score where all had the same domain score."""
    result: dict[str, Any] = {name: {} for name in BALANCES}
    for name in BALANCES:
        for suite in SUITES:
            result[name][suite] = over_seeds([of_seed[name]["scores"][suite] for of_seed in found])
    for suite in ("general", "format"):
        at = [
            at_common_level({name: [(p["domain"], p[suite]) for p in of_seed[name]["curve"]] for name in BALANCES})[1]
            for of_seed in found
        ]
        for name in BALANCES:
            result[name][f"{suite}_at_level"] = over_seeds([of_seed[name] for of_seed in at])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder for seed-N; a second call goes on there")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    share_cpu()
    for seed in args.seeds:
        run_seed(Run(args.runs / f"seed-{seed}"), seed)
    found = [read_json(args.runs / f"seed-{seed}" / "seed.json") for seed in args.seeds]
    record = {
        "methods": collect(found),
        "curves": {seed: {n: of[n]["curve"] for n in of} for seed, of in zip(args.seeds, found, strict=True)},
        "lambda": {seed: {n: of[n]["lambda"] for n in of} for seed, of in zip(args.seeds, found, strict=True)},
        "seeds": args.seeds,
        "domain": DOMAIN,
        **provenance(
            f"python -m studies.microworld.balance --runs DIR --seeds {' '.join(map(str, args.seeds))} --out FILE"
        ),
    }
    write_json(args.out, record)
    print(args.out)


if __name__ == "__main__":
    main()
