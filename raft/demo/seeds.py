"""Run the demo for several seeds and put the figures together, with their spread and a test of the difference.

`python -m raft.demo.seeds --runs DIR --seeds 0 1 2 --out results/microworld/seeds.json`. A seed that is finished in DIR is not
run again. Each seed is a world of its own (facts, splits, training randomness), so an item of the test is an (item, seed) pair.
"""

import argparse
import subprocess
import sys
from math import comb
from pathlib import Path
from typing import Any

from raft.demo.record import commit
from raft.demo.run import SUITES
from raft.demo.settings import DOMAIN
from raft.evaluate.statistics import over_seeds, paired_interval
from raft.runs import read_json, write_json


def mcnemar(first: list[float], second: list[float]) -> float:
    """Exact two-sided p of McNemar's test on paired right (1) and wrong (0) answers: are the disagreements a fair coin?"""
    wins = sum(a > b for a, b in zip(first, second, strict=True))
    losses = sum(a < b for a, b in zip(first, second, strict=True))
    n = wins + losses
    tail = sum(comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    return min(1.0, 2 * tail)


def collect(folders: list[Path]) -> dict[str, Any]:
    """{"methods": ..., "tests": ...} over finished demo runs."""
    summaries = [read_json(folder / "summary.json") for folder in folders]
    methods: dict[str, dict[str, Any]] = {}
    for method in ("base", "sft", "raft"):
        methods[method] = {}
        for suite in SUITES:
            methods[method][suite] = over_seeds([summary["scores"][method][suite] for summary in summaries])
    tests = {}
    for suite in SUITES:
        raft, sft = (
            [
                sample["score"]
                for folder in folders
                for sample in read_json(folder / "eval" / f"{method}.json")["samples"]
                if sample["suite"] == suite
            ]
            for method in ("raft", "sft")
        )
        tests[suite] = {
            "p": mcnemar(raft, sft),
            "difference": sum(raft) / len(raft) - sum(sft) / len(sft),
            "ci95": list(paired_interval(raft, sft)),
            "n": len(raft),
        }
    return {"methods": methods, "tests": {"raft_vs_sft": tests}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder for the run folders seed-N")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--domain", default=DOMAIN)
    args = parser.parse_args()
    folders = []
    for seed in args.seeds:
        folder = args.runs / f"seed-{seed}"
        if not (folder / "summary.json").exists():
            command = [sys.executable, "-m", "raft", "demo", "--run", str(folder), "--seed", str(seed)]
            command += ["--domain", args.domain] + (["--resume"] if folder.exists() else [])
            subprocess.run(command, check=True)
        folders.append(folder)
    summary = read_json(folders[0] / "summary.json")
    record = {
        **collect(folders),
        "seeds": args.seeds,
        "domain": args.domain,
        "settings": summary["settings"],
        "n_per_seed": summary["n"],
        "machine": summary["machine"],
        "versions": summary["versions"],
        "commit": commit(),
        "command": f"python -m raft.demo.seeds --runs DIR --seeds {' '.join(map(str, args.seeds))} --domain {args.domain} --out FILE",
    }
    write_json(args.out, record)
    print(args.out)


if __name__ == "__main__":
    main()
