"""`raft real` whole, in small: the demo's base model on rows written for the test, transformers' generation."""

import os
import shutil
from dataclasses import replace

import pytest

from raft.demo.settings import BASE_MODEL
from raft.errors import RunFolderError
from raft.real import REAL_MODEL
from raft.real.results import Chosen, Point, Study
from raft.real.scores import METRICS
from raft.real.settings import QUICK
from raft.real.study import run_real
from raft.runs import read_json, read_jsonl
from raft.runs.folder import open_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # A dozen processes of ten seconds and more each.
    pytest.mark.skipif(not os.environ.get(REAL_MODEL), reason=f"{REAL_MODEL} is not set"),
]

SETTINGS = replace(
    QUICK,
    rows=24,
    validation=4,
    arc=3,
    arc_validation=2,
    ifeval=2,
    engine="hf",
    rates=(1e-4, 1e-3),
    epochs=(1, 2),
    train={**QUICK.train, "per_device_train_batch_size": 8, "max_length": 256, "use_cpu": True},
    refine={"max_tokens": 32, "max_model_len": 256, "rounds": 1, "prompts": "plain"},
)


@pytest.fixture(scope="module")
def folders(made_up_data, tmp_path_factory):
    return made_up_data, tmp_path_factory.mktemp("run")


def go(folders, seeds, settings=SETTINGS):
    run = open_run(folders[1], "real", resume=True)
    options = {"model": str(BASE_MODEL), "data_dir": folders[0], "settings": settings, "command": "raft real"}
    return run_real(run, seeds=seeds, **options)


def test_a_seed_then_another(folders, tmp_path):
    result = go(folders, [0])
    assert result == read_json(folders[1] / "medquad.json")
    assert set(result) == Study.__required_keys__ and set(result["chosen"]) == Chosen.__required_keys__
    assert set(result["methods"]) == {"base", "sft", "raft"} and result["seeds"] == [0]
    assert tuple(result["methods"]["sft"]) == METRICS == tuple(result["tests"]["raft_vs_sft"])
    chosen = read_json(folders[1] / "chosen.json")
    assert [len(points) for points in chosen["grid"].values()] == [3, 3]
    for method, points in chosen["grid"].items():
        assert chosen["chosen"][method]["value"] == max(point["value"] for point in points)
        assert all(set(point) == Point.__required_keys__ for point in points)
        assert [point["epochs"] for point in points] == [1, 1, 2]
        better = max(points[:2], key=lambda point: point["value"])
        assert points[2]["learning_rate"] == better["learning_rate"]
        # The second epoch went on where the first one ended.
        steps = read_jsonl(
            folders[1] / "seeds" / "0" / f"{method}-{better['learning_rate']:g}" / "train" / "metrics.jsonl"
        )
        assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
        assert all(0 < point["domain"] < 1 and 0 < point["general"] < 1 for point in points)
    page = (folders[1] / "report.html").read_text()
    assert "ARC-Easy" in page and "(chosen)" in page and "Trained facts, asked otherwise" in page

    written = {path: path.stat().st_mtime_ns for path in folders[1].rglob("*.safetensors")}
    evaluated = (folders[1] / "base" / "eval" / "base.json").stat().st_mtime_ns
    more = go(folders, [0, 1])
    assert more["seeds"] == [0, 1] and len(more["methods"]["raft"]["arc_easy"]["seeds"]) == 2
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert (folders[1] / "base" / "eval" / "base.json").stat().st_mtime_ns == evaluated
    # The second seed trains what the first one chose, and nothing else.
    trained = sorted(p.parent.name for p in (folders[1] / "seeds" / "1").glob("*/train"))
    assert trained == sorted(f"{m}-{p['learning_rate']:g}" for m, p in chosen["chosen"].items())

    # What was found of each item is enough to go on elsewhere; nothing is trained or evaluated again.
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folders[1] / "values", elsewhere / "values")
    shutil.copy(folders[1] / "chosen.json", elsewhere)
    again = go((folders[0], elsewhere), [1, 0])
    assert again["methods"]["raft"]["arc_easy"]["seeds"] == more["methods"]["raft"]["arc_easy"]["seeds"][::-1]
    assert again["tests"] == more["tests"] and not (elsewhere / "seeds").exists()
    (elsewhere / "real.json").unlink()  # which would refuse it first
    with pytest.raises(RunFolderError, match="values/base.json: was asked .*; remove it"):
        go((folders[0], elsewhere), [0], replace(SETTINGS, arc=2))

    with pytest.raises(RunFolderError, match="rows"):
        go(folders, [0], replace(SETTINGS, rows=11))
