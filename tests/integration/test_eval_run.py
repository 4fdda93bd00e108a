"""`raft eval` and `raft report` on tiny random checkpoints: from Python and through the command line."""

import json

import pytest

from raft.cli import main, plan_evaluation
from raft.engines import HFEngine, Sampling
from raft.errors import ConfigError, InputError, ModelError
from raft.evaluate import evaluate, weight_distance
from raft.evaluate.checks import score
from raft.evaluate.evaluation import evaluate_run
from raft.evaluate.results import Result, Sample
from raft.runs import Run
from raft.settings import Config, EvalSettings
from tests import tiny

ITEMS = [
    {"id": "d1", "question": "ab cd?", "answer": "ef gh"},
    {"id": "d2", "question": "a longer question with more words in it?", "answer": "ij", "suite": "domain"},
    {
        "id": "g1",
        "question": "Say a.",
        "suite": "general",
        "skill": "say",
        "check": {"kind": "without", "word": "zebra"},
    },
    {"id": "f1", "question": "Shout.", "suite": "format", "skill": "upper", "check": {"kind": "upper"}},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "base": tiny.build("llama", folder / "base", seed=0),
        "other": tiny.build("llama", folder / "other", seed=1),
    }


@pytest.fixture(scope="module")
def engine(models):
    return HFEngine(models["base"], max_model_len=256)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    return path


def config(**changes):
    return Config(evaluate=EvalSettings(engine="hf", max_tokens=8, max_model_len=256, batch_size=3), **changes)


def test_evaluate_scores_what_the_engine_says(engine):
    result = evaluate(ITEMS, engine, Sampling(temperature=0.0, max_tokens=8))
    assert result["n"] == {"domain": 2, "general": 1, "format": 1}
    assert [sample["id"] for sample in result["samples"]] == ["d1", "d2", "g1", "f1"]
    for item, sample in zip(ITEMS, result["samples"], strict=True):
        check = item.get("check", {"kind": "f1"})
        assert sample["score"] == score(check, sample["output"], answer=item.get("answer"))
        assert sample["finish_reason"] in ("stop", "length") and "<|" not in sample["output"]
    assert result["scores"]["domain"] == sum(s["score"] for s in result["samples"][:2]) / 2
    assert result["by_skill"] == {
        "general": {"say": result["samples"][2]["score"]},
        "format": {"upper": result["samples"][3]["score"]},
    }


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_batches_do_not_change_answers(engine, temperature):
    sampling = Sampling(temperature=temperature, max_tokens=8)
    assert evaluate(ITEMS, engine, sampling, batch_size=1) == evaluate(ITEMS, engine, sampling)


def test_sampled_batches_repeat_with_the_seed_and_draw_apart(engine):
    same = [{**ITEMS[2], "id": str(i)} for i in range(4)]
    sampling = Sampling(temperature=1.5, max_tokens=8, seed=3)
    first = [s["output"] for s in evaluate(same, engine, sampling, batch_size=2)["samples"]]
    again = [s["output"] for s in evaluate(same, engine, sampling, batch_size=2)["samples"]]
    assert first == again
    assert len(set(first)) == 4  # one prompt four times: each batch and request has random numbers of its own


def test_evaluate_run_writes_scores_retention_and_distance(models, data, tmp_path, capsys):
    run = Run(tmp_path / "run")
    result = evaluate_run(plan_evaluation(config(seed=1), run, models["other"], data), "other", base=models["base"])
    written = json.loads((run.eval_dir / "other.json").read_text())
    base = json.loads((run.eval_dir / "base.json").read_text())
    assert written == result
    assert written["model"] == str(models["other"]) and base["model"] == str(models["base"])
    for suite, kept in written["retention"].items():
        assert kept == written["scores"][suite] / base["scores"][suite]
    distance = json.loads((run.eval_dir / "weight_distance.json").read_text())
    assert distance == {"other": weight_distance(models["base"], models["other"])}
    printed = capsys.readouterr().out
    assert f"{100 * written['scores']['general']:.1f} %" in printed and "general (n=1)" in printed
    assert not list(run.eval_dir.glob(".*"))


def test_bad_input_fails_before_a_model_is_loaded(models, data, tmp_path):
    run = Run(tmp_path / "run")
    with pytest.raises(ModelError, match="no model in the run folder"):
        evaluate_run(plan_evaluation(config(), run, None, data))
    with pytest.raises(ConfigError, match="name: expected letters"):
        evaluate_run(plan_evaluation(config(), run, models["base"], data), "../out")
    with pytest.raises(ConfigError, match="'base' is the name"):
        evaluate_run(plan_evaluation(config(), run, models["other"], data), "base", base=models["base"])
    data.write_text(json.dumps({"id": "x", "question": "q", "check": {"kind": "shout"}}) + "\n")
    with pytest.raises(InputError, match=r"items\.jsonl, item 'x', field \"check\": unknown kind 'shout'"):
        evaluate_run(plan_evaluation(config(), run, models["base"], data))
    data.write_text(json.dumps({"id": "x", "question": "q"}) + "\n")
    with pytest.raises(InputError, match=r"item 'x', field \"answer\""):
        evaluate_run(plan_evaluation(config(), run, models["base"], data))
    data.write_text(json.dumps({"id": "long", "question": "q " * 400, "answer": "a"}) + "\n")
    with pytest.raises(InputError, match=r"item 'long': .* tokens"):
        evaluate_run(plan_evaluation(config(), run, models["base"], data))
    assert not run.path.exists()


def test_a_base_is_evaluated_once_for_the_same_items_and_settings(models, data, tmp_path, caplog):
    run = Run(tmp_path / "run")
    evaluate_run(plan_evaluation(config(seed=1), run, models["other"], data), "one", base=models["base"])
    file = run.eval_dir / "base.json"
    before = json.loads(file.read_text())
    file.write_text(json.dumps({**before, "marked": True}))
    with caplog.at_level("INFO", "raft"):
        result = evaluate_run(plan_evaluation(config(seed=1), run, models["other"], data), "two", base=models["base"])
    assert json.loads(file.read_text())["marked"] and "evaluated before" in caplog.text
    assert result["retention"] == json.loads((run.eval_dir / "one.json").read_text())["retention"]
    evaluate_run(plan_evaluation(config(seed=2), run, models["other"], data), "three", base=models["base"])
    assert "marked" not in json.loads(file.read_text())
    file.write_text(json.dumps({**before, "marked": True}))
    data.write_text("".join(json.dumps(item) + "\n" for item in ITEMS[:3]))
    evaluate_run(plan_evaluation(config(seed=1), run, models["other"], data), "four", base=models["base"])
    assert "marked" not in json.loads(file.read_text())


def test_items_of_the_training_rows_are_named(models, data, tmp_path, caplog):
    rows = tmp_path / "train.jsonl"
    rows.write_text(json.dumps({"question": ITEMS[1]["question"], "answer": "kl"}) + "\n")
    run = Run(tmp_path / "run")
    plan = plan_evaluation(config(data=str(rows)), run, models["other"], data)
    result = evaluate_run(plan, "tuned", base=models["base"])
    assert set(result) == Result.__required_keys__ | Result.__optional_keys__
    assert all(set(sample) - {"thought"} == Sample.__required_keys__ for sample in result["samples"])
    assert result["trained_items"] == ["d2"] and "1 of 4 items ask what the training rows ask" in caplog.text
    assert "trained_items" not in evaluate_run(plan_evaluation(config(), run, models["other"], data), "again")


def test_base_is_the_model_that_the_run_starts_from(models, data, tmp_path):
    run = Run(tmp_path / "run")
    with pytest.raises(ConfigError, match="name: 'base' is the name of the model that the run starts from"):
        evaluate_run(plan_evaluation(config(model=str(models["base"])), run, models["other"], data), "base")
    assert evaluate_run(plan_evaluation(config(model=str(models["base"])), run, models["base"], data), "base")["n"]


def test_command_line_eval_then_report(models, data, tmp_path, capsys):
    folder = tmp_path / "run"
    options = ["--run", str(folder), "--data", str(data), "evaluate.engine=hf", "evaluate.max_tokens=4"]
    assert (
        main(["eval", "--model", str(models["other"]), "--base", str(models["base"]), "--name", "tuned", *options]) == 0
    )
    assert main(["report", "--run", str(folder)]) == 0
    assert capsys.readouterr().out.rstrip().endswith("report.html")
    page = (folder / "report.html").read_text()
    assert "tuned" in page and "Domain questions that tuned got" in page
    assert (folder / "report.md").exists()
    assert main(["report", "--run", str(tmp_path / "nothing")]) == 2
    assert "no such run folder" in capsys.readouterr().err
