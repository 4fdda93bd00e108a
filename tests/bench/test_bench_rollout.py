"""The benchmark of the engines: its records hold what the contract names, and its goals follow from them."""

import json
import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.common.children import ChildResult, ChildRun
from bench.common.limits import Ceilings
from bench.steps import rollout
from bench.steps.work import WORKS, make_prompts

pytestmark = pytest.mark.usefixtures("same_process")

QUICK = WORKS["quick"]
FIELDS = ["op", "provider", "device", "n", "h", "v", "k", "dtype", "regime", "pass", "ms_p20", "ms_p50", "ms_p80"]
FIELDS += ["peak_mib", "versions", "commit", "command"]  # the contract; what follows is for the tables
FIELDS += ["weights", "model", "parameters", "tokens", "tokens_per_second", "parameter_mib", "student_mib"]
FIELDS += ["threads", "limit", "greedy_agreement"]


def test_prompts_are_mixed_and_the_same_for_all():
    prompts = make_prompts(QUICK, 200)
    assert prompts == make_prompts(QUICK, 200) and len({len(p) for p in prompts}) > 10
    assert max(map(len, prompts)) <= QUICK.prompts.most


def made_up(name, weights, generate_s, refresh_s, peak, parameters, final=True):
    about = {"weights": weights, "construct_s": 4.0, "construct_peak_mib": peak - 10, "parameters": 147_904}
    about |= {"student_mib": 0.5, "threads": 2}
    turns = [{"generate_s": s, "refresh_s": refresh_s, "tokens": 500} for s in (9.0, *generate_s)]
    child = ChildResult(about, turns, {"peak_mib": peak, "parameter_mib": parameters} if final else None)
    logs = Path(os.devnull)
    run = ChildRun(
        device="cpu",
        device_name="cpu, 2 threads",
        state="idle",
        limit=Ceilings(1e11, 1e10),
        command="python -m bench rollout",
        out=None,
        logs=logs,
    )
    return list(rollout.rollout_records(name, QUICK, child, child, 8, run))


def records():
    return [
        *made_up("vllm-shared", "shared", (1.0, 1.2, 1.1), 0.0005, 100.0, 0.5),
        *made_up("vllm-copied", "copied", (1.1, 1.1, 1.1), 0.005, 100.5, 1.0),
        *made_up("hf", "own", (3.3, 3.2, 3.4), 0.0, 90.0, 0.5),
    ]


def test_records_of_an_engine():
    construct, generate, refresh = made_up("vllm-shared", "shared", (1.0, 1.2, 1.1), 0.0005, 100.0, 0.5)
    assert all(sorted(r) == sorted(FIELDS) for r in (construct, generate, refresh))
    assert (construct["pass"], construct["ms_p50"], construct["peak_mib"]) == ("construct", 4000, 90)
    assert (generate["ms_p20"], generate["ms_p50"], generate["ms_p80"]) == (1040, 1100, 1160)
    assert generate["tokens_per_second"] == pytest.approx(500 / 1.1, rel=1e-4) and generate["peak_mib"] == 100
    assert refresh["ms_p50"] == 0.5 and refresh["tokens_per_second"] is None
    assert made_up("hf", "own", (1.0,), 0.0, 90.0, 0.5, final=False)[1]["peak_mib"] is None


def test_goals_and_ratios():
    assert rollout.summary(records()) == [
        f"qwen3-quick: {line}"
        for line in (
            "goal: shared weights lower the peak below copied ones by >= 0.95 copies of the student: 1.00 met",
            "goal: shared weights lower what all parameters hold by >= 1 copies of the student: 1.00 met",
            "goal: refresh of shared weights <= 1 % of the generation alone: 0.05 met",
            "vllm-shared vs vllm-copied: 1.00 times as many tokens/s",
            "vllm-shared vs hf: 3.00 times as many tokens/s",
            "refresh of shared weights 10.0 times as fast as of copied ones",
        )
    ]
    without = rollout.summary(made_up("hf", "own", (1.0,), 0.0, 90.0, 0.5))
    assert len(without) == 3 and all(line.endswith("not measured") for line in without)


def test_table_and_picture_of_records(tmp_path, capsys):
    (tmp_path / "r.json").write_text(json.dumps(records()))
    assert rollout.main(["--records", str(tmp_path / "r.json")]) == 0
    assert (
        "| vllm-shared | shared | 1,040 | 1,100 | 1,160 | 500.0 | 454.6 | 0.5 | 0.5 | 0.5 | 4 |"
        in capsys.readouterr().out
    )
    svg = (tmp_path / "r.svg").read_text()
    ElementTree.fromstring(svg)
    assert "vLLM on shared weights 3.0 times as fast as transformers" in svg


def test_wrong_words_on_the_command_line_are_named(capsys):
    with pytest.raises(SystemExit):
        rollout.parse(["--providers", "hf,tgi"])
    assert "tgi unknown; there are vllm-shared, vllm-copied, hf" in capsys.readouterr().err


@pytest.mark.slow
def test_the_quick_command(tmp_path):
    out = tmp_path / "records.json"
    assert rollout.main(["--quick", "--device", "cpu", "--reps", "1", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [(r["provider"], r["pass"]) for r in found] == [("hf", p) for p in rollout.PASSES]
    assert all(sorted(r) == sorted(FIELDS) and r["peak_mib"] > 50 for r in found)
    # The engine is the model itself.
    assert found[1]["parameter_mib"] == pytest.approx(found[1]["student_mib"], rel=0.01)
