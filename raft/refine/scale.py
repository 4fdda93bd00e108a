"""Stage 1 on many workers: parts of the rows over an existing Ray cluster, or over one that is started here.

Each part has stores of its own (`raft.refine.parts`) in the run folder, which all machines must see. A worker does to
its part what one process does to all rows; seeds belong to requests, so it makes the same texts. When the parts are
done their lines go into the stores of the run, and the usual refinement does what is left: what failed for now, and the
diagnostics. A part whose worker dies goes on, on another one, from what is in its stores.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from raft.errors import EngineError, RaftError
from raft.isolate import reason
from raft.progress import Progress
from raft.refine.context import open_context
from raft.refine.parts import merge_parts, split_rows
from raft.refine.pipeline import do_stages
from raft.refine.roles import Roles
from raft.refine.slices import slices
from raft.rows import Row
from raft.settings import Plan, RefineSettings
from raft.settings.schema import Config

STARTS = 3
"""Tries to start a cluster: Ray gives a node 30 seconds, which may be too few where the machine is busy."""
RESTARTS = 3
"""Of a worker, and of a part: one that kills its worker each time ends the run."""


def refine_on_ray(plan: Plan, workers: int, *, retry_failed: bool = False) -> None:
    """Fills the stores of the plan's run. EngineError with the words of the first worker that cannot go on."""
    import ray
    from ray.data import DataContext

    config = replace(plan.config, refine=_absolute(plan.config.refine))
    started = not ray.is_initialized()
    if started:
        _start_ray(os.environ.get("RAY_ADDRESS"))
    try:
        parts = split_rows(plan.run.refine_dir, plan.rows, batch_size=config.refine.batch_size, workers=workers)
        given = [{"folder": str(folder.resolve()), "rows": json.dumps(rows)} for folder, rows in parts]
        DataContext.get_current().enable_progress_bars = False
        needs_gpu = ray.cluster_resources().get("GPU", 0) and Roles.uses_this_machine(config.refine)
        worker: Any = Worker  # Ray's types know functions alone
        done = ray.data.from_items(given, override_num_blocks=len(given)).map(
            worker,
            fn_constructor_args=(config, _as_folder(plan.model), retry_failed),
            concurrency=workers,
            num_gpus=1 if needs_gpu else 0,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
        )
        with Progress("refine: parts", len(plan.rows)) as bar:
            for part in done.iter_rows():
                if part["error"]:
                    raise EngineError(f"a worker: {part['error']}")
                bar.add(part["rows"])
    finally:
        if started:
            ray.shutdown()
        merge_parts(plan.run.refine_dir)


def _start_ray(address: str | None) -> None:
    """address: of a cluster; None: one is started on this machine. EngineError where there is none."""
    import ray

    for left in reversed(range(1 if address else STARTS)):
        try:
            ray.init(address=address, log_to_driver=False, include_dashboard=False)
            return
        except Exception as error:  # Ray raises many kinds, Exception itself too
            ray.shutdown()
            if not left:
                where = f"reached at {address}" if address else "started on this machine"
                raise EngineError(f"Ray: no cluster could be {where}: {reason(error)}") from error


class Worker:
    """Refines one part after the other, with models that are made once."""

    def __init__(self, config: Config, model: str, retry_failed: bool):
        self._config, self._model, self._retry_failed = config, model, retry_failed
        self._roles: Roles | None = None

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        """What came of a part; an error of the run as text, since one that is raised is a failure of Ray's."""
        rows: list[Row] = json.loads(part["rows"])
        try:
            self._roles = self._roles or Roles(self._config.refine, self._model)
            with open_context(
                Path(part["folder"]),
                self._config.refine,
                self._roles.models,
                seed=self._config.seed,
                progress=False,
                retry_failed=self._retry_failed,
            ) as context:
                for some in slices(rows, self._config.refine.batch_size):
                    do_stages(context, some)
        except RaftError as error:
            return {"rows": 0, "error": str(error)}
        return {"rows": len(rows), "error": ""}


def _absolute(settings: RefineSettings) -> RefineSettings:
    """With the folders of models as workers find them, which have another working directory."""
    return replace(
        settings,
        rewriter=_as_folder(settings.rewriter),
        fuser=_as_folder(settings.fuser),
        judges=[_as_folder(name) for name in settings.judges],
        embedding_model=_as_folder(settings.embedding_model),
    )


def _as_folder(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).is_dir() else name
