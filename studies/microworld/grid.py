"""Choose learning rate and epochs of each method.

    python -m studies.microworld.grid --run DIR --out results/microworld_grid.json

All methods have the same small grid on the same world. The choice uses the validation split only: it maximises the
harmonic mean of domain and general accuracy, because fine-tuning should give both. (By the plain mean, the untrained
model, which has learned nothing and forgotten nothing, would beat most trained ones.) The rate is constant after the
warm-up, so the longest training contains all shorter ones.
"""

import argparse
import statistics
from pathlib import Path

from raft.cpu import share_cpu
from raft.demo.settings import DOMAIN, GRID_EPOCHS, GRID_RATES, METHODS, DemoSettings, GridPoint
from raft.demo.stages import Stages
from raft.runs import Run, read_jsonl, write_json
from raft.runs.provenance import provenance


def value(point: dict) -> float:
    """The value that the choice maximises."""
    return statistics.harmonic_mean((point["domain"], point["general"]))


def run_grid(run: Run, *, seed: int, domain: str) -> dict:
    """All points of the grid: method -> list of {"learning_rate", "epochs", "domain", "general", "format"}."""
    stages = Stages(run, domain, seed, DemoSettings(validate_every=4))
    points: dict[str, list[dict]] = {}
    for method in METHODS:
        points[method] = []
        for rate in GRID_RATES:
            folder = Run(run.path / "grid" / f"{method}-{rate:g}")
            stages.train(method, GridPoint(rate, max(GRID_EPOCHS)), folder)
            for line in read_jsonl(folder.train_dir / "validation.jsonl"):
                if round(line["epoch"], 3) in GRID_EPOCHS:
                    scores = {suite: line[suite] for suite in ("domain", "general", "format")}
                    points[method].append({"learning_rate": rate, "epochs": int(line["epoch"]), **scores})
                    print(f"{method}: {points[method][-1]}", flush=True)
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder for the trainings; a second call goes on there")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--domain", default=DOMAIN)
    args = parser.parse_args()
    share_cpu()
    points = run_grid(Run(args.run), seed=args.seed, domain=args.domain)
    chosen = {method: max(found, key=value) for method, found in points.items()}
    record = {
        "criterion": "harmonic mean of domain and general accuracy on the validation split",
        "seed": args.seed,
        "domain": args.domain,
        "grid": points,
        "chosen": chosen,
        **provenance(
            f"python -m studies.microworld.grid --run DIR --out FILE --seed {args.seed} --domain {args.domain}"
        ),
    }
    write_json(args.out, record)
    print(chosen)


if __name__ == "__main__":
    main()
