"""Reads a run folder into one object. Whatever a run has not made yet is None or empty, and its section is left out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypedDict

from raft.errors import InputError, RunFolderError
from raft.evaluate.results import Result, Sample
from raft.evaluate.suites import Item
from raft.refine.lines import FailedLine, FusedRow
from raft.runs import Run, read_json, read_jsonl
from raft.settings.files import read_yaml
from raft.stats.retention import retention
from raft.train.lines import MetricsLine, ValidationLine, WarningLine

if TYPE_CHECKING:
    from raft.merging.distance import WeightDistance

# The first models of every table, in this order. Others (a plain run's "model", another method) follow by name.
KNOWN = ("base", "sft", "raft")
OTHER_STYLES = 6  # colours of templates/chart.css for models that are not in KNOWN
NAMES = {"base": "Base", "sft": "SFT", "raft": "RAFT", "model": "Model"}
SUITES = ("domain", "general", "format")


@dataclass(frozen=True)
class Training:
    """The log of one training."""

    metrics: list[MetricsLine]
    validation: list[ValidationLine]
    warnings: list[WarningLine]


class Summary(TypedDict, total=False):
    """summary.json, which the demo writes: what it came to, and how it was made."""

    scores: dict[str, dict[str, float]]  # method -> suite -> score in [0, 1]
    n: dict[str, int]  # suite -> number of items
    seconds: dict[str, float]  # stage -> wall clock
    seed: int
    domain: str
    retention: dict[str, dict[str, float]]  # method -> suite -> score as a share of the base model's
    settings: dict[str, dict[str, float]]  # method -> its point of the grid
    engine: dict[str, str]  # its name, and how it has the weights
    machine: Mapping[str, object]
    versions: dict[str, str]  # package -> version
    command: str


ItemKey = tuple[str, str]
"""Id and question: two files may number different items alike."""


@dataclass(frozen=True)
class RunData:
    path: Path
    summary: Summary  # {} where there is none
    config: dict[str, Any]  # config.yaml, or {}
    evals: dict[str, Result]  # method -> eval/METHOD.json
    weight_distance: "dict[str, WeightDistance]"  # method -> distance from the base model
    training: dict[str, Training]  # method -> its log
    fused: list[FusedRow]
    failed: list[FailedLine]
    diagnostics: dict[str, object]  # `raft.refine.lines.Diagnostics`, shown whatever it holds
    items: dict[tuple[str, str], Item]  # (suite, id) -> test item
    beside: tuple[str, ...] = ()  # methods of other runs on the same page

    @property
    def methods(self) -> list[str]:
        """All models of which the run holds anything."""
        return ordered([*self.scores, *self.evals, *self.training, *self.weight_distance])

    @property
    def styles(self) -> dict[str, str]:
        """Method -> the name of its colour and marker: its own for those of KNOWN, "other1" and so on for others."""
        others = [method for method in ordered([*self.methods, *self.beside]) if method not in KNOWN]
        numbered = {method: f"other{i % OTHER_STYLES + 1}" for i, method in enumerate(others)}
        return {method: method for method in KNOWN} | numbered

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """Method -> suite -> score in [0, 1]: summary.json's where it is there, else those of the eval files."""
        if self.summary.get("scores"):
            return {name: self.summary["scores"][name] for name in ordered(self.summary["scores"])}
        return {name: self.evals[name]["scores"] for name in self.evals}

    @property
    def n(self) -> dict[str, int]:
        """Suite -> number of items."""
        counts: dict[str, int] = {}
        for result in self.evals.values():
            counts.update(result.get("n", {}))
        return {**counts, **self.summary.get("n", {})}

    @property
    def suites(self) -> list[str]:
        found = {suite for scores in self.scores.values() for suite in scores}
        return [s for s in SUITES if s in found] + sorted(found.difference(SUITES))

    @property
    def retention(self) -> dict[str, dict[str, float]]:
        """Method -> suite -> score / base score."""
        if self.summary.get("retention"):
            return self.summary["retention"]
        scores = self.scores
        if "base" not in scores:
            return {}
        kept = {}
        for name in scores:
            if name == "base":
                continue
            pairs = {suite: self.compared(name, "base", suite) for suite in self.suites}
            ours = {suite: pair[0] for suite, pair in pairs.items() if pair}
            kept[name] = retention(ours, {suite: pair[1] for suite, pair in pairs.items() if pair})
        return kept

    def samples(self, method: str) -> list[Sample]:
        return self.evals[method].get("samples", []) if method in self.evals else []

    def item_scores(self, method: str, suite: str) -> dict[ItemKey, float]:
        """Item -> score of this method."""
        return {_item(sample): sample["score"] for sample in self.samples(method) if sample["suite"] == suite}

    def shared(self, first: str, second: str, suite: str) -> list[ItemKey]:
        """The items that both answered."""
        return sorted(set(self.item_scores(first, suite)) & set(self.item_scores(second, suite)))

    def compared(self, first: str, second: str, suite: str) -> tuple[float, float] | None:
        """Both scores, on the items that both answered where the two were not asked the same; None without such."""
        scores = self.scores
        if suite not in scores.get(first, {}) or suite not in scores.get(second, {}):
            return None
        ours, theirs = self.item_scores(first, suite), self.item_scores(second, suite)
        if set(ours) == set(theirs) or not (ours and theirs):
            return scores[first][suite], scores[second][suite]
        shared = self.shared(first, second, suite)
        if not shared:
            return None
        return fmean(ours[i] for i in shared), fmean(theirs[i] for i in shared)

    @property
    def cautions(self) -> list[str]:
        """What to know before two scores are compared: models that were asked different items, and trained ones."""
        found = []
        answered = [name for name in self.evals if self.samples(name)]
        for name in answered[1:]:
            for suite in self.suites:
                first, ours = (set(self.item_scores(method, suite)) for method in (answered[0], name))
                if first and ours and first != ours:
                    found.append(
                        f"{method_name(name)} and {method_name(answered[0])} were not asked the same items of {suite}: "
                        f"{len(ours):,} and {len(first):,}, {len(first & ours):,} in common, which alone are compared."
                    )
        for name, result in self.evals.items():
            trained = len(result.get("trained_items", ()))
            if trained:
                items = sum(result.get("n", {}).values())
                found.append(
                    f"{trained:,} of the {items:,} items that {method_name(name)} answered ask what the training rows "
                    "ask: scores on them say what was learned, not what it does with new questions."
                )
        return found


def _item(sample: Sample) -> ItemKey:
    return str(sample["id"]), str(sample.get("question", ""))


def ordered(methods: Iterable[str]) -> list[str]:
    """Method names as every table and figure lists them, each once."""
    methods = set(methods)
    return [name for name in KNOWN if name in methods] + sorted(methods.difference(KNOWN))


def method_name(method: str) -> str:
    return NAMES.get(method, method)


def load_run(path: str | Path) -> RunData:
    """Read DIR; RunFolderError if there is no such folder or nothing in it to report."""
    run = Run(path)
    if not run.path.is_dir():
        raise RunFolderError(f"{path}: no such run folder")
    evals: dict[str, Any] = {}
    distance: dict[str, WeightDistance] = {}
    for file in sorted(run.eval_dir.glob("*.json")):
        value = read_json(file)
        if file.stem == "weight_distance":
            distance = value
        elif isinstance(value, dict) and "scores" in value:
            evals[file.stem] = value
    config = _yaml(run.path / "config.yaml")
    own = ((_yaml(run.train_dir / "config.yaml") or config).get("train") or {}).get("method", "raft")
    training = {folder.parent.name: _training(folder) for folder in sorted(run.path.glob("baselines/*/train"))}
    training[own] = _training(run.train_dir)
    data = RunData(
        path=run.path,
        summary=_json(run.path / "summary.json"),
        config=config,
        evals={name: evals[name] for name in ordered(evals)},
        weight_distance={name: distance[name] for name in ordered(distance)},
        training={name: training[name] for name in ordered(training) if any(vars(training[name]).values())},
        fused=read_jsonl(run.refine_dir / "fused.jsonl"),
        failed=read_jsonl(run.refine_dir / "failed.jsonl"),
        diagnostics=_json(run.refine_dir / "diagnostics.json"),
        items={
            (item.get("suite", "domain"), str(item.get("id"))): item
            for item in read_jsonl(run.path / "data" / "test.jsonl")
        },
    )
    if not (data.summary or data.evals or data.weight_distance or data.training or data.fused or data.diagnostics):
        raise RunFolderError(
            f"{path}: nothing to report, expected a run's refine/, train/, eval/ or summary.json in it"
        )
    return data


def load_others(data: RunData, paths: Sequence[str | Path]) -> list[RunData]:
    """Runs whose scores are to stand beside those of `data`; RunFolderError for one without any, or one that is there
    twice."""
    known, found = {data.path.resolve()}, []
    for path in paths:
        other = load_run(path)
        if not other.scores:
            raise RunFolderError(
                f"{path}: no scores to put beside those of {data.path}, expected eval/ or summary.json"
            )
        if other.path.resolve() in known:
            raise RunFolderError(f"{path}: is there twice, expected each run once")
        known.add(other.path.resolve())
        found.append(other)
    return found


def _training(folder: Path) -> Training:
    return Training(*(read_jsonl(folder / f"{name}.jsonl") for name in ("metrics", "validation", "warnings")))


def _json(path: Path) -> Any:
    """The object in a file, or {} if there is no file."""
    if not path.exists():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _yaml(path: Path) -> dict[str, Any]:
    value = read_yaml(path) if path.exists() else {}
    return value if isinstance(value, dict) else {}
