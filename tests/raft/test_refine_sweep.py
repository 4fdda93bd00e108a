"""`raft refine --sweep-tau`: what other thresholds would have kept, from a finished run alone."""

import json

import pytest

from raft.cli import main
from raft.refine.sweep import Similarities, sweep_text
from raft.runs import Run, write_text


def fused(similarity, *reasons):
    return {"similarity": similarity, "rejected": {"rewrite": list(reasons), "fuse": []}}


ROWS = [
    fused(None),
    fused(0.3, "similarity"),
    fused(0.55, "similarity"),
    fused(0.55, "similarity", "echo"),
    fused(0.83),
    fused(0.96),
]


def test_the_table_has_every_tau_with_its_counts():
    counts = Similarities(ROWS).sweep([0.5, 0.8, 0.9])
    assert counts == {
        "0.5": {"similar": 4, "pass": 3},
        "0.8": {"similar": 2, "pass": 2},
        "0.9": {"similar": 1, "pass": 1},
    }
    table = sweep_text(ROWS, 0.83).splitlines()
    assert table[0].startswith("5 rewritings of 6 rows")
    found = {line.split()[0]: line.split() for line in table[2:-1]}
    assert next(iter(found)) == "below" and found["below"][-1] == "1"
    assert found["0.5"][1:7] == ["4", "80.0", "%", "3", "60.0", "%"]
    assert found["*"][1:5] == ["0.83", "2", "40.0", "%"]  # the run's own, between 0.8 and 0.85
    inside = {name: int(line[-1]) for name, line in found.items()}
    assert {name: n for name, n in inside.items() if n} == {"below": 1, "0.55": 2, "*": 1, "0.95": 1}
    assert len(found["0.55"][-2]) == 30 and len(found["0.95"][-2]) == 15


def test_it_needs_a_finished_refinement_and_nothing_else(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["refine", "--run", str(run), "--sweep-tau"]) == 2
    assert "no such file, expected a finished refinement" in capsys.readouterr().err
    write_text(Run(run).refine_dir / "fused.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    assert main(["refine", "--run", str(run), "--sweep-tau", "refine.tau=0.6"]) == 0
    shown = capsys.readouterr().out
    assert shown == sweep_text(ROWS, 0.6) + "\n"
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("*")] == ["*", "*"]


def test_rows_without_rewritings_give_an_empty_table():
    assert sweep_text([fused(None)], 0.8).splitlines()[0].startswith("0 rewritings of 1 rows")


@pytest.mark.parametrize("tau", [0.5, 0.8, 0.951, 0.80000001, 1.0])
def test_the_runs_own_tau_is_marked_once(tau):
    assert sum(line.startswith("*") for line in sweep_text(ROWS, tau).splitlines()[:-1]) == 1
