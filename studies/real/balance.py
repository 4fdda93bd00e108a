"""The balances between the two losses, compared on a real model and a real domain.

    python -m studies.real.balance --run DIR --model FOLDER --data-dir DIR --out results/real/balance.json

RAFT is trained with each balance, and SFT for comparison, on the same raw answers at one learning rate. A checkpoint
every half epoch, scored by `raft.real.validate`, shows what each has forgotten at the point where all have learned
equally much.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from raft.cpu import share_cpu
from raft.demo.stages import StageTimes
from raft.evaluate.curve import at_common_level
from raft.real.data import read_data
from raft.real.files import data_folder
from raft.real.results import Passed, Validation
from raft.real.settings import RealSettings
from raft.real.study import Seed
from raft.refine.store import write_lines
from raft.runs import Run, read_jsonl, write_json
from raft.runs.provenance import provenance, settle
from studies.microworld.balance import BALANCES

METHODS = {"sft": {"method": "sft"}} | {
    name: {"method": "raft", "target": "raw", "log_gradient_parts": 1, **switches}
    for name, switches in BALANCES.items()
}
COLUMNS = ("lambda", "grad_norm", "gradient_sft", "gradient_kl", "loss_sft", "loss_kl")


def compare(curves: Mapping[str, Sequence[Validation]]) -> dict[str, dict[str, float]]:
    """Method -> {"domain", "general"}: "general" at the highest "domain" score that every method reaches."""
    points = {name: [(p["domain"], p["general"]) for p in curve] for name, curve in curves.items()}
    level, general = at_common_level(points)
    return {name: {"domain": level, "general": value} for name, value in general.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="run folder; a second call goes on there")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    share_cpu()
    settings = replace(RealSettings(), methods=METHODS, rates=(args.rate,), epochs=(0.5, 1))
    run, folder = Run(args.run), data_folder(args.data_dir)
    run.path.mkdir(parents=True, exist_ok=True)
    settle(run, {"rate": args.rate, "seed": args.seed, "model": str(args.model)}, name="balance.json")
    data = read_data(folder, seed=settings.data_seed, train=settings.rows, validation=settings.validation)
    rows = run.path / "data" / "train.jsonl"
    write_lines(rows, data.medquad.train)
    stages = Seed(run, str(args.model), data, rows, args.seed, settings, StageTimes(run.path / "seconds.json"))
    start: Passed = {"epochs": 0.0, **stages.validated(args.model, run.path / "base.json")}
    curves: dict[str, list[Passed]] = {name: [start, *points] for name, points in stages.choose()["grid"].items()}
    trained = {name: read_jsonl(stages.folder(name, args.rate).train_dir / "metrics.jsonl") for name in METHODS}
    record = {
        "at_level": compare(curves),
        "curves": curves,
        "steps": {
            name: {column: [line.get(column) for line in lines] for column in COLUMNS}
            for name, lines in trained.items()
        },
        "rate": args.rate,
        "seed": args.seed,
        "model": args.model.name,
        **provenance(
            f"python -m studies.real.balance --run DIR --model {args.model.name} --data-dir DIR --rate {args.rate:g} "
            f"--seed {args.seed} --out FILE"
        ),
    }
    write_json(args.out, record)
    print(args.out)


if __name__ == "__main__":
    main()
