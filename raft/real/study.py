"""`raft real`: SFT and RAFT on a real model and a real domain over several seeds, evaluated beside the base model.

    RUN/data/train.jsonl             the training rows
    RUN/base/eval/base.json          the base model, evaluated once: all seeds have the same items
    RUN/chosen.json                  the grid of the first seed and the point chosen for each method
    RUN/seeds/N/stage1/               a run of `raft refine` with the base model
    RUN/seeds/N/METHOD-RATE/          one training, with a checkpoint at each number of epochs of the grid
    RUN/seeds/N/eval/METHOD.json      the chosen checkpoint of each method, evaluated
    RUN/values/base.json, N/METHOD.json   the metrics of each item, without texts of the data
    RUN/medquad.json, report.html    the table of all finished seeds

Existing results are not computed again, so a killed run continues where it stopped; with values/ and chosen.json it
continues with other seeds on another machine. Refinement, trainings and evaluations are separate processes, so that
each has one vLLM engine and its memory is freed. Those that do not need each other can run in parallel (`Jobs`).
"""

import json
import math
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from raft.demo.stages import StageTimes
from raft.errors import RaftError, RunFolderError
from raft.progress import say
from raft.real.data import Data, read_data
from raft.real.jobs import Jobs
from raft.real.report import write_page
from raft.real.results import Asked, Chosen, Evaluation, ItemValues, Point, Study, Validation
from raft.real.scores import values
from raft.real.settings import Fields, RealSettings
from raft.real.table import table
from raft.refine.store import write_lines
from raft.runs import Run, read_json, write_json
from raft.runs.provenance import commit, machine, settle, versions


def run_real(
    run: Run,
    *,
    model: str,
    data_dir: Path,
    seeds: Sequence[int],
    settings: RealSettings,
    command: str,
    at_once: int = 1,
) -> Study:
    """The table of `raft.real.table` over `seeds`, written to medquad.json and report.html after each seed.

    at_once: number of stages that run in parallel, each with its own model in memory.
    """
    # Converted through JSON, because it is compared with the JSON file of a resumed run.
    given = json.loads(json.dumps({"model": str(model), "data": str(data_dir), **asdict(settings)}))
    settle(run, given, name="real.json")
    data = read_data(
        data_dir,
        seed=settings.data_seed,
        train=settings.rows,
        validation=settings.validation,
        arc=settings.arc,
        arc_validation=settings.arc_validation,
        ifeval=settings.ifeval,
    )
    rows = run.path / "data" / "train.jsonl"  # the same for every seed
    write_lines(rows, data.medquad.train)
    clock = StageTimes(run.path / "seconds.json")
    found: dict[str, list[ItemValues]] = {"base": [], **{method: [] for method in settings.methods}}
    result: Study
    with Jobs(at_once) as jobs:
        base = jobs.start(partial(_base, run, model, data, settings, clock, jobs))
        if at_once == 1:
            base()
        every = [Seed(run, model, data, rows, seed, settings, clock, jobs) for seed in seeds]
        for stages in every:
            if stages.needs_refinement:
                jobs.start(stages.refine)  # early, so that it is done when a training needs it
        chosen = every[0].choose()
        evaluated = [
            {method: jobs.start(partial(stages.evaluated, method, chosen)) for method in settings.methods}
            for stages in every
        ]
        for number, (seed, methods) in enumerate(zip(seeds, evaluated, strict=True), 1):
            say(f"raft real: seed {seed}, {number} of {len(seeds)}")
            found["base"].append(base())
            for method, work in methods.items():
                found[method].append(work())
            result = {
                **table(
                    found,
                    model=Path(model).name,
                    data=f"MedQuAD, {settings.rows} rows",
                    commit=commit(),
                    command=command,
                ),
                "seeds": list(seeds[:number]),
                "chosen": chosen,
                "seconds": dict(clock.seconds),
                "at_once": at_once,
                "machine": machine(),
                "versions": versions(),
            }
            write_json(run.path / "medquad.json", result)
            say(str(write_page(run.path, result)))
    return result


def _base(run: Run, model: str, data: Data, settings: RealSettings, clock: StageTimes, jobs: Jobs) -> ItemValues:
    def work() -> Evaluation:
        return clock.time(
            "base: evaluating", "base", lambda: _evaluated(jobs, model, data, run.path / "base", "base", settings, 0)
        )

    return _valued(run.path / "values" / "base.json", settings, data, work)


class Seed:
    """The stages of one seed. A stage is skipped if the run folder already has its result."""

    def __init__(
        self,
        run: Run,
        model: str,
        data: Data,
        rows: Path,
        seed: int,
        settings: RealSettings,
        clock: StageTimes,
        jobs: Jobs | None = None,
    ):
        self.top, self.model, self.data, self.rows = run, model, data, rows
        self.seed, self.settings, self.clock, self.jobs = seed, settings, clock, jobs or Jobs()
        self.run = Run(run.path / "seeds" / str(seed))
        self._refining = threading.Lock()

    def refine(self) -> Path:
        """The file of the refined rows. Concurrent calls wait for the first one."""
        with self._refining:
            return self._refine()

    def _refine(self) -> Path:
        run = Run(self.run.path / "stage1")
        rows = run.refine_dir / "fused.jsonl"
        if (run.refine_dir / "diagnostics.json").exists():  # written last
            return rows
        settings = {"engine": self.settings.engine, **self.settings.refine}
        given = [f"refine.{name}={value}" for name, value in settings.items()]
        self._call(
            "refining",
            "refine",
            *("refine", "--model", self.model, "--data", str(self.rows), "--run", str(run.path)),
            f"seed={self.seed}",
            *given,
            resumable=run.config_path,
        )
        return rows

    def train(self, method: str, rate: float, epochs: float) -> Run:
        """The run folder of a training with a checkpoint at each number of epochs of the grid up to `epochs`. A shorter
        training is continued."""
        folder = self.folder(method, rate)
        if self.checkpoint(folder, epochs).exists() and folder.model_dir.exists():
            return folder
        given = {
            "rollout_engine": self.settings.engine,
            **self.settings.train,
            **self.settings.methods[method],
            "learning_rate": rate,
            "max_steps": self._steps(epochs),
            "save_strategy": "steps",
            "save_steps": self._steps(self.settings.epochs[0]),
            "save_total_limit": len(self.settings.epochs),
        }
        shutil.rmtree(folder.model_dir, ignore_errors=True)  # of a shorter training: the folder marks a finished one
        rows = self.rows if _on_raw(given) else self.refine()
        self._call(
            f"training {method}, learning rate {rate:g}",
            f"train_{method}_{rate:g}",
            *("train", "--model", self.model, "--data", str(rows), "--run", str(folder.path)),
            *(f"train.{name}={json.dumps(value)}" for name, value in given.items()),
            f"seed={self.seed}",
            resumable=folder.train_dir,
        )
        return folder

    @property
    def needs_refinement(self) -> bool:
        """Whether a training that reads refined answers is still to be done."""
        refined = [method for method, given in self.settings.methods.items() if not _on_raw(given)]
        chosen = (self.top.path / "chosen.json").exists()
        return bool(refined) and not (chosen and all(self._values(method).exists() for method in refined))

    def _values(self, method: str) -> Path:
        return self.top.path / "values" / str(self.seed) / f"{method}.json"

    def folder(self, method: str, rate: float) -> Run:
        return Run(self.run.path / f"{method}-{rate:g}")

    def choose(self) -> Chosen:
        """chosen.json, from the first seed that ran."""
        from raft.real.validate import best

        path = self.top.path / "chosen.json"
        if not path.exists():
            first, *later = self.settings.epochs
            begun = {
                method: [self.jobs.start(partial(self._point, method, rate, first)) for rate in self.settings.rates]
                for method in self.settings.methods
            }
            grid: dict[str, list[Point]] = {}
            longer = {}
            for method, points in begun.items():
                grid[method] = [point() for point in points]
                better = best(grid[method])["learning_rate"]
                longer[method] = self.jobs.start(partial(self._points, method, better, later))
            for method, work in longer.items():
                grid[method] += work()
            chosen = {method: best(points) for method, points in grid.items()}
            write_json(path, {"seed": self.seed, "grid": grid, "chosen": chosen})
        result: Chosen = read_json(path)
        return result

    def _points(self, method: str, rate: float, several: Sequence[float]) -> list[Point]:
        return [self._point(method, rate, epochs) for epochs in several]

    def _point(self, method: str, rate: float, epochs: float) -> Point:
        folder = self.train(method, rate, epochs)
        model = self.checkpoint(folder, epochs)
        scores = self.validated(model, folder.path / f"{model.name}.json")
        point: Point = {"learning_rate": rate, "epochs": epochs, **scores}
        say(f"      {method}: {point}")
        return point

    def validated(self, model: str | Path, path: Path) -> Validation:
        """The scores of `raft.real.validate`, kept in the file `path`."""
        if not path.exists():
            self.clock.time(
                f"validating {path.parent.name}, {Path(model).name}",
                "validate",
                lambda: self.jobs.alone(_validate, str(model), self.data, str(path)),
            )
        found: Validation = read_json(path)
        return found

    def checkpoint(self, folder: Run, epochs: float) -> Path:
        """The model of a training after `epochs` epochs."""
        return folder.train_dir / f"checkpoint-{self._steps(epochs)}"

    def _steps(self, epochs: float) -> int:
        """Optimizer steps of `epochs` epochs. The last batch of an epoch may be smaller."""
        batch = self.settings.train["per_device_train_batch_size"]
        return round(epochs * math.ceil(len(self.data.medquad.train) / batch))

    def evaluated(self, method: str, chosen: Chosen) -> ItemValues:
        """The values of the chosen checkpoint of `method`."""

        def work() -> Evaluation:
            point = chosen["chosen"][method]
            folder = self.train(method, point["learning_rate"], point["epochs"])
            checkpoint = self.checkpoint(folder, point["epochs"])
            return self.clock.time(
                f"seed {self.seed}: evaluating {method}",
                f"eval_{method}",
                lambda: _evaluated(
                    self.jobs, str(checkpoint), self.data, self.run.path, method, self.settings, self.seed
                ),
            )

        return _valued(self._values(method), self.settings, self.data, work)

    def _call(self, label: str, name: str, *words: str, resumable: Path) -> None:
        """Run a command of raft as a process, with --resume if an earlier try left the file or folder `resumable`."""
        again = ["--resume"] if resumable.exists() else []

        def work() -> None:
            code = self.jobs.call([sys.executable, "-m", "raft", *words, *again])
            if code:
                raise RaftError(f"raft {shlex.join(words)} ended with code {code}")

        self.clock.time(f"seed {self.seed}: {label}", name, work)


def _valued(path: Path, settings: RealSettings, data: Data, work: Callable[[], Evaluation]) -> ItemValues:
    """The values of an evaluation, kept in `path`. RunFolderError if its items or settings are not this run's."""
    from raft.real.evaluate import digest

    asked = Asked(items=digest(data), max_tokens=settings.max_tokens, rows=settings.rows)
    if not path.exists():
        found = work()
        rounded = {
            metric: {item: [round(value, 5) for value in of_item] for item, of_item in by_item.items()}
            for metric, by_item in values(found["samples"]).items()
        }
        write_json(path, {"metrics": found["metrics"], "n": found["n"], "values": rounded, "asked": asked})
    kept: ItemValues = read_json(path)
    if kept.get("asked") != asked:
        raise RunFolderError(f"{path}: was asked {kept.get('asked')}, expected {asked}; remove it to evaluate again")
    return kept


def _on_raw(given: Fields) -> bool:
    """Whether a training with these fields reads the raw answers, not the refined ones."""
    return given["method"] == "sft" or given.get("target") == "raw"


def _evaluated(
    jobs: Jobs, model: str, data: Data, folder: Path, name: str, settings: RealSettings, seed: int
) -> Evaluation:
    jobs.alone(_evaluate, model, data, str(folder), name, settings.engine, settings.max_tokens, seed)
    found: Evaluation = read_json(Run(folder).eval_dir / f"{name}.json")
    return found


def _evaluate(model: str, data: Data, folder: str, name: str, engine: str, max_tokens: int, seed: int) -> None:
    from raft.real.evaluate import Model, evaluate
    from raft.refine.embed import load_embedder

    embedder = load_embedder("minilm")
    evaluate(Model(model, engine), data, folder, name, embedder=embedder, max_tokens=max_tokens, seed=seed)


def _validate(model: str, data: Data, path: str) -> None:
    from raft.real.validate import validate

    write_json(Path(path), validate(model, data.medquad.validation, data.arc_validation))
