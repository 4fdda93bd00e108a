"""A whole evaluation of a tiny model: every metric from its samples, resumed part by part, and compared in a table."""

import json
import math
import sys

import pytest

from raft.errors import ConfigError, InputError
from raft.real import general
from raft.real.data import read_data
from raft.real.evaluate import Model, evaluate, likelihoods
from raft.real.results import ArcChoice, DomainAnswer, DomainChoice, Evaluation, IFEvalAnswer, Samples, Table
from raft.real.scores import METRICS, metrics, values
from raft.real.table import table
from tests.raft.real_rows import LetterCounts
from tests.tiny import build


@pytest.fixture(scope="module")
def data(made_up_data):
    return read_data(made_up_data, seed=0, train=24, validation=0, arc=6, arc_validation=0, ifeval=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    build("llama", folder)
    return folder


@pytest.fixture(scope="module")
def run(data, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, evaluated(Model(model, "hf"), data, folder)


def evaluated(model, data, folder, **changes):
    options = {"embedder": LetterCounts(), "max_tokens": 6, "ifeval_tokens": 8, **changes}
    return evaluate(model, data, folder, "base", **options)


class Unloaded(Model):
    weights = property(lambda self: pytest.fail("loaded"))


class Begun(Exception):
    pass


class Silent(Model):
    @property
    def engine(self):
        raise Begun


def test_all_metrics_with_their_samples(run):
    folder, result = run
    assert json.loads((folder / "eval" / "base.json").read_text()) == result
    assert tuple(result["metrics"]) == METRICS
    assert result["n"]["domain_rephrased_f1"] == 16 and result["n"]["domain_unseen_choice"] == 12
    assert result["n"]["ifeval_prompt_strict"] == 3 and result["n"]["ifeval_instruction_strict"] == 4
    samples = result["samples"]
    right = [s["score"] for s in samples["arc"]]
    assert result["metrics"]["arc_easy"] == sum(right) / 6
    for sample in samples["arc"]:
        assert sample["score"] == float(sample["loglik"][sample["answer"]] == max(sample["loglik"]))
    for sample in samples["domain_choice"]:
        assert sample["choice"] == float(sample["loglik"] > max(sample["wrong_loglik"]))
    tale = next(s for s in samples["ifeval"] if len(s["instructions"]) == 2)
    assert tale["strict"] == [
        "," not in tale["output"] and bool(tale["output"]),
        False,
    ]  # eight tokens are no 200 words
    assert all(s["words"] == len(s["output"].split()) for s in samples["domain_answers"])


def test_samples_have_the_fields_of_their_types(run):
    result = run[1]
    assert set(result) == Evaluation.__required_keys__ | Evaluation.__optional_keys__
    kinds = {"domain_answers": DomainAnswer, "domain_choice": DomainChoice, "ifeval": IFEvalAnswer, "arc": ArcChoice}
    assert set(result["samples"]) == set(kinds) == Samples.__optional_keys__
    for part, kind in kinds.items():
        assert all(set(sample) - {"thought"} == kind.__required_keys__ for sample in result["samples"][part]), part


def test_what_is_there_is_not_done_again(run, data, model):
    path = run[0] / "eval" / "base.json"
    before = path.stat().st_mtime_ns
    assert evaluated(Unloaded(model, "hf"), data, run[0]) == run[1]
    assert path.stat().st_mtime_ns == before


def test_a_killed_evaluation_goes_on(run, data, model):
    path = run[0] / "eval" / "base.json"
    torn = json.loads(path.read_text())
    del torn["samples"]["arc"], torn["metrics"], torn["n"]
    path.write_text(json.dumps(torn))
    assert evaluated(Silent(model, "hf"), data, run[0])["metrics"] == pytest.approx(run[1]["metrics"])


@pytest.mark.parametrize("changes", [{"max_tokens": 7}, {"seed": 1}])
def test_other_settings_are_other_work(run, data, model, changes):
    with pytest.raises(Begun):
        evaluated(Silent(model, "hf"), data, run[0], **changes)
    kept = evaluated(Silent(model, "hf"), data, run[0])
    assert kept["metrics"] == run[1]["metrics"]  # the file is still the old one's


def test_a_text_without_tokens_is_never_chosen(model):
    asked = [("Which is it?", ("", "This one.")), ("And here?", ("That one.",))]
    (empty, said), (other,) = likelihoods(Model(model, "hf"), asked, "texts", None)
    assert empty == -math.inf and said > -math.inf and other > -math.inf


def test_missing_packages_and_sentence_splitter(tmp_path, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "lm_eval", None)  # as if it were not installed
        with pytest.raises(ConfigError, match=r"^IFEval: needs the package lm_eval, .*lm-eval\[ifeval\]'$"):
            general.ifeval_functions(tmp_path)
    nltk = pytest.importorskip("nltk")
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(ConfigError, match="has no tokenizers/punkt_tab"):
        general.ifeval_functions(tmp_path)


def test_checks_of_ifeval_are_lm_evals_and_repeat(data):
    functions = general.ifeval_functions(data.folder)
    item = next(item for item in data.ifeval if len(item["kwargs"]) == 2)
    assert general.score_ifeval(functions, item, "word " * 200)["strict"] == [True, True]
    commas = general.score_ifeval(functions, item, "Well, then,\n" + "word " * 200)
    assert commas == {"strict": [False, True], "loose": [True, True]}  # loose: without the first line
    assert general.score_ifeval(functions, item, "")["strict"] == [False, False]


def result(scores):
    """An evaluation with two prompts of IFEval (two instructions and one) and `scores` of ARC."""
    samples = {
        "ifeval": [{"id": "1", "strict": [True, False]}, {"id": "2", "strict": [True]}],
        "arc": [{"id": str(i), "score": float(score)} for i, score in enumerate(scores)],
    }
    means, n = metrics(samples)
    return {"metrics": means, "n": n, "values": values(samples)}


ABOUT = {"model": "m", "data": "d", "commit": None, "command": "c"}


def test_values_of_instructions_stay_with_their_prompt():
    found = result([1])
    assert found["metrics"] == {"ifeval_prompt_strict": 0.5, "ifeval_instruction_strict": 2 / 3, "arc_easy": 1.0}
    assert found["values"]["ifeval_instruction_strict"] == {"1": [1.0, 0.0], "2": [1.0]}


def test_table_over_seeds():
    right, wrong = result([1] * 9 + [0]), result([0] * 9 + [1])
    found = table({"base": [wrong, wrong], "sft": [wrong, wrong], "raft": [right, right]}, **ABOUT)
    assert set(found) == Table.__required_keys__
    assert found["methods"]["raft"]["arc_easy"] == {"mean": 0.9, "std": 0.0, "seeds": [0.9, 0.9]}
    assert found["n"] == {"ifeval_prompt_strict": 2, "ifeval_instruction_strict": 3, "arc_easy": 10}
    tests = found["tests"]["raft_vs_sft"]
    assert tests["arc_easy"]["difference"] == pytest.approx(0.8)
    low, high = tests["arc_easy"]["ci95"]
    assert low < 0.8 < high <= 1
    # Nine of ten items for it under a fair coin: 22 of 1,024 ways. Two seeds make no twenty items of them.
    assert tests["arc_easy"]["p"] == pytest.approx(22 / 1024, abs=0.006)
    assert tests["ifeval_prompt_strict"] == {"p": 1.0, "difference": 0.0, "ci95": [0.0, 0.0]}
    assert {key: found[key] for key in ABOUT} == ABOUT


def test_table_refuses_what_cannot_be_compared():
    with pytest.raises(InputError, match="as many seeds"):
        table({"sft": [result([1])], "raft": []}, **ABOUT)
    with pytest.raises(InputError, match="arc_easy, seed number 0: the two methods were asked different items"):
        table({"sft": [result([1])], "raft": [result([1, 0])]}, **ABOUT)
