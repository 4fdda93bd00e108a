"""The real model on a few of the real rows. Needs both folders: RAFT_REAL_MODEL and RAFT_DATA_DIR."""

import dataclasses
import os

import pytest

from raft.real import DATA_DIR, REAL_MODEL
from raft.real.data import read_data
from raft.real.evaluate import Model, evaluate
from raft.real.scores import METRICS
from raft.refine.embed import load_embedder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not (os.environ.get(REAL_MODEL) and os.environ.get(DATA_DIR)), reason=f"{REAL_MODEL} and {DATA_DIR} are not set"
    ),
]


def test_real_model_on_real_rows(tmp_path):
    pytest.importorskip("lm_eval.tasks", reason="IFEval's checks are lm-eval's")
    whole = read_data(seed=0)
    assert len(whole.medquad.train) == 300 and len(whole.medquad.unseen) == 201
    assert whole.medquad.not_rephrased <= 0.05 * 300
    known = {row["question"] for row in whole.medquad.train} | {item.question for item in whole.medquad.validation}
    assert not known & {item.question for item in whole.medquad.rephrased + whole.medquad.unseen}
    domain = dataclasses.replace(whole.medquad, rephrased=whole.medquad.rephrased[:6], unseen=whole.medquad.unseen[:6])
    data = dataclasses.replace(whole, medquad=domain, arc=whole.arc[:12], ifeval=whole.ifeval[:2])
    model, embedder = Model(os.environ[REAL_MODEL], "hf"), load_embedder("minilm")
    found = evaluate(model, data, tmp_path, "base", embedder=embedder, max_tokens=32)
    assert tuple(found["metrics"]) == METRICS
    assert found["metrics"]["arc_easy"] > 0.25  # of four choices
    assert found["metrics"]["domain_unseen_choice"] > 0.25
    assert -5 < found["metrics"]["domain_unseen_loglik"] < -1  # nats a token; chance is -10.8
    assert found["metrics"]["domain_unseen_similarity"] > 0.3  # it speaks of the disease that it is asked about
