"""Parts of the rows, each with stores of its own: how the stores of a run are split over them and merged again."""

import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path

from raft.isolate import batches
from raft.refine.lines import StoredLine
from raft.refine.slices import has_wording, slices
from raft.refine.store import Store
from raft.rows import Row
from raft.runs import JsonlAppender
from raft.runs.files import iter_jsonl

STORES = ("rewrite.jsonl", "filter.jsonl", "fuse.jsonl", "judge.jsonl")
PARTS_OF_A_WORKER = 4
"""So that one slow part does not leave the other workers idle for long."""
OPEN_FILES = 64
"""At once, while the stores are split: a process may have 256 open on some systems."""


def split_rows(
    refine_dir: Path, rows: Sequence[Row], *, batch_size: int, workers: int
) -> list[tuple[Path, Sequence[Row]]]:
    """The folder and the rows of each part. The folders have the lines that the run already has of their rows. Parts
    are whole batches, so that the batches of the embedding model are those of one process."""
    texts = sum(map(has_wording, rows))
    parts = list(slices(rows, batch_size, math.ceil(max(texts, 1) / (workers * PARTS_OF_A_WORKER))))
    part_of = {row["id"]: i for i, part in enumerate(parts) for row in part}
    folders = [_parts(refine_dir) / f"{i:05d}" for i in range(len(parts))]
    for folder in folders:
        folder.mkdir(parents=True)
    for name, some in product(STORES, batches(range(len(parts)), OPEN_FILES)):
        with ExitStack() as stack:
            files = {i: stack.enter_context(JsonlAppender(folders[i] / name)) for i in some}
            for line in iter_jsonl(refine_dir / name):
                if (i := part_of.get(line["id"])) in files:
                    files[i].append(line)
    return list(zip(folders, parts, strict=True))


def merge_parts(refine_dir: Path) -> None:
    """Adds what the parts have made to the stores of the run, and removes the parts. Without parts it does nothing.

    A text takes the place of a failure, and nothing else is replaced: parts may be those of a run that was killed,
    after which the run itself went on.
    """
    folder = _parts(refine_dir)
    if not folder.exists():
        return
    for name in STORES:
        with Store[StoredLine](refine_dir / name) as store:
            for part in sorted(folder.glob("*")):
                for line in iter_jsonl(part / name):
                    there = store.get(line["id"], line["key"])
                    if there is None or (_has_failed(there) and not _has_failed(line)):
                        store.add(line)
    shutil.rmtree(folder)


def _has_failed(line: Mapping[str, object]) -> bool:
    return bool(line.get("failed")) or ("judge" in line and line["score"] is None)


def _parts(refine_dir: Path) -> Path:
    return refine_dir / "parts"
