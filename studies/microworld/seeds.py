"""Run the demo for several seeds and summarise the scores: mean, spread, and tests of the differences.

    python -m studies.microworld.seeds --runs DIR --seeds 0 1 2 --out results/microworld/seeds.json

A seed that is finished in DIR is not run again. Each seed has its own world (facts, splits, training randomness), so
two seeds share no test item. The interval of a difference draws seeds, and then items within each seed, because the
scores of one training are not independent.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from raft.demo.comparison import SUITES
from raft.demo.settings import DOMAIN
from raft.runs import read_json, write_json
from raft.runs.provenance import commit
from raft.stats.intervals import Training, caution, over_seeds
from raft.stats.tests import compare, differences


def collect(folders: list[Path]) -> dict[str, Any]:
    """{"methods": ..., "tests": ...} over finished demo runs, one per seed."""
    summaries = [read_json(folder / "summary.json") for folder in folders]
    names = list(summaries[0]["scores"])
    methods = {
        name: {suite: over_seeds([summary["scores"][name][suite] for summary in summaries]) for suite in SUITES}
        for name in names
    }
    scores = {name: [_scores(folder, name) for folder in folders] for name in names if name != "base"}
    tests = {}
    for name in (name for name in scores if name != "raft"):
        seeds = list(zip(scores["raft"], scores[name], strict=True))
        tests[f"raft_vs_{name}"] = {
            suite: _compare([(raft[suite], other[suite]) for raft, other in seeds]) for suite in SUITES
        }
    return {"methods": methods, "tests": tests}


def _scores(folder: Path, method: str) -> dict[str, dict[tuple[str, str], list[float]]]:
    """Suite -> (folder, item id) -> [score]. The folder is needed because two seeds have other items with equal ids."""
    found: dict[str, dict[tuple[str, str], list[float]]] = {}
    for sample in read_json(folder / "eval" / f"{method}.json")["samples"]:
        found.setdefault(sample["suite"], {})[folder.name, sample["id"]] = [sample["score"]]
    return found


def _compare(pairs: list[tuple[Training, Training]]) -> dict[str, Any]:
    """{"p" (McNemar), "difference", "ci95", "n"} of one suite. pairs: each seed's scores under both methods."""
    found = [differences(first, second) for first, second in pairs]
    return {**compare(found), "n": sum(map(len, found))}


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
    given = f"--seeds {' '.join(map(str, args.seeds))} --domain {args.domain}"
    record = {
        **collect(folders),
        "seeds": args.seeds,
        "domain": args.domain,
        "settings": summary["settings"],
        "n_per_seed": summary["n"],
        "machine": summary["machine"],
        "versions": summary["versions"],
        "commit": commit(),
        "command": f"python -m studies.microworld.seeds --runs DIR {given} --out FILE",
    }
    write_json(args.out, record)
    print("\n".join(filter(None, (caution(len(folders)), str(args.out)))))


if __name__ == "__main__":
    main()
