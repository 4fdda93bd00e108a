"""Stage 1 on many workers: parts of the rows over an existing Ray cluster, or over one that is started here.

Each part has stores of its own, in the run folder, which all machines must see. A worker does to its part what one
process does to all rows; seeds belong to requests, so it makes the same texts. When the parts are done their lines go
into the stores of the run, and the usual refinement finds everything there. A part whose worker dies goes on, on
another one, from what is in its stores.
"""

import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raft.progress import Progress
from raft.refine.context import open_context
from raft.refine.pipeline import do_stages
from raft.refine.roles import Roles
from raft.rows import Row
from raft.runs import JsonlAppender, read_jsonl
from raft.settings import Plan
from raft.settings.schema import Config

STORES = ("rewrite.jsonl", "filter.jsonl", "fuse.jsonl", "judge.jsonl")
PARTS_OF_A_WORKER = 4
"""So that one slow part does not leave the other workers idle for long."""


def refine_on_ray(plan: Plan, workers: int, *, retry_failed: bool = False) -> None:
    """Fills the stores of the plan's run."""
    import ray
    from ray.data import DataContext

    folder = plan.run.refine_dir / "parts"
    _merge(plan.run.refine_dir, folder)  # what a run that was killed has left
    parts = _split(plan.run.refine_dir, folder, plan.rows, plan.config.refine.batch_size, workers)
    started = not ray.is_initialized()
    if started:
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, include_dashboard=False)
    try:
        DataContext.get_current().enable_progress_bars = False
        needs_gpu = ray.cluster_resources().get("GPU", 0) and Roles.uses_this_machine(plan.config.refine)
        done = ray.data.from_items(parts, override_num_blocks=len(parts)).map(
            Worker,
            fn_constructor_args=(plan.config, plan.model, retry_failed),
            concurrency=workers,
            num_gpus=1 if needs_gpu else 0,
        )
        with Progress("refine: parts", len(plan.rows)) as bar:
            for row in done.iter_rows():
                bar.add(row["rows"])
    finally:
        if started:
            ray.shutdown()
    _merge(plan.run.refine_dir, folder)


class Worker:
    """Refines one part after the other, with models that are made once."""

    def __init__(self, config: Config, model: str, retry_failed: bool):
        self._config, self._retry_failed = config, retry_failed
        self._roles = Roles(config.refine, model)

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        rows: list[Row] = json.loads(part["rows"])
        with open_context(
            Path(part["folder"]),
            self._config.refine,
            self._roles.models,
            seed=self._config.seed,
            progress=False,
            retry_failed=self._retry_failed,
        ) as context:
            do_stages(context, rows)
        return {"rows": len(rows)}


def _split(refine_dir: Path, folder: Path, rows: Sequence[Row], batch_size: int, workers: int) -> list[dict[str, str]]:
    """Makes the folders of the parts, with the lines that the run already has of their rows. Parts are whole batches,
    so that the batches of the embedding model are those of one process."""
    batches = math.ceil(len(rows) / batch_size)
    size = batch_size * math.ceil(batches / (workers * PARTS_OF_A_WORKER))
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    part_of = {row["id"]: i for i, part in enumerate(parts) for row in part}
    folders = [folder / f"{i:05d}" for i in range(len(parts))]
    for part_folder in folders:
        part_folder.mkdir(parents=True)
    for name in STORES:
        lines: list[list[str]] = [[] for _ in parts]
        for line in read_jsonl(refine_dir / name):
            if line["id"] in part_of:
                lines[part_of[line["id"]]].append(json.dumps(line, ensure_ascii=False) + "\n")
        for part_folder, of_part in zip(folders, lines, strict=True):
            (part_folder / name).write_text("".join(of_part), encoding="utf-8")
    return [
        {"folder": str(part_folder.resolve()), "rows": json.dumps(part)}
        for part_folder, part in zip(folders, parts, strict=True)
    ]


def _merge(refine_dir: Path, folder: Path) -> None:
    """Adds the lines of all parts to the stores of the run, and removes the parts."""
    for name in STORES:
        known = {json.dumps(line, sort_keys=True) for line in read_jsonl(refine_dir / name)}
        with JsonlAppender(refine_dir / name) as store:
            for part in sorted(folder.glob("*")):
                for line in read_jsonl(part / name):
                    if json.dumps(line, sort_keys=True) not in known:
                        store.append(line)
    shutil.rmtree(folder, ignore_errors=True)
