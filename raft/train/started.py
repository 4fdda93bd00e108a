"""train/started.json: model, data and settings that a training was started with. A resumed training must have the same.

Settings listed here may change: those of logging and saving, those that only affect memory or speed, and the number of
steps, which may grow.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from raft.digest import json_digest
from raft.errors import RunFolderError
from raft.models.fingerprint import fingerprint
from raft.rows import Row
from raft.runs import Run, read_json, write_json
from raft.settings import Config, load_config
from raft.train.config import RAFTConfig, check_train_keys

_FREE_KINDS = ("log_", "logging_", "save_", "hub_", "trackio_", "gradient_checkpointing")
_FREE = (
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "ddp_timeout",
    "disable_tqdm",
    "engine_weights",
    "include_num_input_tokens_seen",
    "include_tokens_per_second",
    "max_tokens_per_micro_batch",
    "output_dir",
    "peak_tflops",
    "project",
    "push_to_hub",
    "release_cache",
    "report_to",
    "run_name",
    "skip_memory_metrics",
    "teacher_offload",
    "torch_empty_cache_steps",
    "vllm_gpu_memory_utilization",
)
_MAY_GROW = ("num_train_epochs", "max_steps")
_READ = (
    *("id", "prompt", "question", "answer", "fused_answer", "rewritten", "kept"),
    *("answer_turn", "tools", "chat_template_kwargs"),
)
"""The fields of a row that training reads."""


class Started(TypedDict):
    """The content of started.json. Of an earlier version's training only `model` and `settings` are known."""

    model: str | None
    weights: NotRequired[str]  # `raft.models.fingerprint` of the model
    data: NotRequired[str]  # the file of the rows
    rows: NotRequired[int]  # their number
    digest: NotRequired[str]  # of what training reads of them
    settings: dict[str, Any]  # the seed, and those of the section `train` that were given, as they read from YAML


def write_started(run: Run, config: Config, rows: Sequence[Row]) -> None:
    """Writes started.json, when a training starts at step 0."""
    write_json(_file(run), _now(config, rows))


def check_started(run: Run, config: Config, rows: Sequence[Row]) -> None:
    """`RunFolderError` names the first of model, data and settings that has changed since the training started.

    Earlier versions wrote no started.json. Their settings are read from config.yaml, and the data is not compared.
    """
    now = _now(config, rows)
    before = read_json(_file(run)) if _file(run).exists() else _earlier(run)
    if before is None:
        return
    if _other_model(before, now):
        why = "its files have changed" if before["model"] == now["model"] else ""
        raise _refused(run, "model", before["model"], now["model"], why)
    if before.get("digest", now["digest"]) != now["digest"]:
        rows_before, rows_now = (f"{s['rows']} rows of {s['data']} ({s['digest']})" for s in (before, now))
        raise _refused(run, "data", rows_before, rows_now)
    for name in sorted({*before["settings"], *now["settings"]}):
        was, found = _setting(before, name), _setting(now, name)
        if was == found or name in _FREE or name.startswith(_FREE_KINDS):
            continue
        if name not in _MAY_GROW:
            raise _refused(run, f"train.{name}", was, found)
        # Only started.json has the number at the start; in config.yaml it is that of the last command.
        if "digest" in before and not 0 < was <= found:
            raise _refused(run, f"train.{name}", was, found, "it may only grow")


def _now(config: Config, rows: Sequence[Row]) -> Started:
    state: Started = {
        "model": config.model,
        "weights": fingerprint(config.model or ""),
        "data": config.data or "the refinement",
        "rows": len(rows),
        "digest": json_digest([{name: row.get(name) for name in _READ} for row in rows]),
        "settings": {"seed": config.seed, **check_train_keys(config.train)},
    }
    compared: Started = json.loads(json.dumps(state))  # as it reads from the file: lists for tuples
    return compared


def _earlier(run: Run) -> Started | None:
    if not run.config_path.exists():
        return None
    config = load_config(run.config_path)
    return {"model": config.model, "settings": {"seed": config.seed, **check_train_keys(config.train)}}


def _setting(state: Started, name: str) -> Any:
    """The value of a setting: its default if it was not given, None if there is no such setting any more."""
    return state["settings"].get(name, getattr(RAFTConfig, name, None))


def _other_model(before: Started, now: Started) -> bool:
    if "weights" in before:
        return bool(before["weights"] != now["weights"])
    return os.path.abspath(before["model"] or "") != os.path.abspath(now["model"] or "")


def _refused(run: Run, name: str, was: object, found: object, why: str = "") -> RunFolderError:
    return RunFolderError(
        f"{run.path}: {name} was {was!r} when this training started, found {found!r}"
        f"{f' ({why})' if why else ''}; resume with the same, or use --overwrite"
    )


def _file(run: Run) -> Path:
    return run.train_dir / "started.json"
