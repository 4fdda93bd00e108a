"""A resumed `raft train` goes on with what it was started with; one after an unfinished refinement does not start."""

import json
from dataclasses import replace

import pytest

from raft.cli import plan_training
from raft.errors import RunFolderError
from raft.runs import Run, read_json
from raft.train.started import check_started, write_started
from raft.train.targets import targets
from raft.train.training import train
from tests.golden.training import config, lines, rows
from tests.raft.test_train_validation import refined, run_config, training_rows


@pytest.fixture
def settings(tmp_path):
    return run_config(tmp_path, save_strategy="steps", save_steps=1)


@pytest.fixture
def started(tmp_path, settings):
    """A run folder whose training was started with `settings`, and the rows."""
    run = Run(tmp_path / "run")
    found = training_rows(settings, run, config(tmp_path))
    write_started(run, settings, found)
    return run, found


def changed(settings, **train):
    return replace(settings, train={**settings.train, **train})


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"learning_rate": 1e-2}, "train.learning_rate was 5e-06 when this training started, found 0.01"),
        ({"method": "sft"}, "train.method was 'raft' .* found 'sft'"),
        ({"top_k": 16}, "train.top_k was 32 .* found 16"),
        ({"max_steps": 1}, r"train.max_steps was 2 .* found 1 \(it may only grow\)"),
        ({"max_steps": -1}, "train.max_steps was 2 .* found -1"),
        ({"num_train_epochs": 2}, r"train.num_train_epochs was 3.0 .* found 2.0 \(it may only grow\)"),
    ],
)
def test_other_settings_are_refused_at_resume(settings, started, train, said):
    with pytest.raises(RunFolderError, match=f"{said}.*; resume with the same, or use --overwrite"):
        check_started(started[0], changed(settings, **train), started[1])


def test_another_seed_is_refused_at_resume(settings, started):
    with pytest.raises(RunFolderError, match="train.seed was 3 .* found 4"):
        check_started(started[0], replace(settings, seed=4), started[1])


def test_what_changes_nothing_of_the_training_may_change_at_resume(settings, started):
    free = {"logging_steps": 5, "save_steps": 2, "save_total_limit": 1, "log_rollouts": 0, "report_to": []}
    more = {"max_steps": 3, "num_train_epochs": 4, "max_tokens_per_micro_batch": 512, "teacher_offload": True}
    check_started(started[0], changed(settings, **free, **more), started[1])


def test_other_data_is_refused_at_resume(tmp_path, settings, started):
    run, found = started
    for other in (found[:-1], found[::-1], [{**found[0], "fused_answer": "it is so"}, *found[1:]]):
        with pytest.raises(RunFolderError, match=r"data was '4 rows of .*' when this training started, found '\d rows"):
            check_started(run, settings, other)
    check_started(run, replace(settings, data=str(tmp_path / "moved.jsonl")), [{**row, "score": 1} for row in found])


def test_another_model_is_refused_at_resume(tmp_path, settings, started):
    run, found = started
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(RunFolderError, match=f"model was '{settings.model}' .* found '{tmp_path}/other'"):
        check_started(run, replace(settings, model=str(tmp_path / "other")), found)


def test_of_an_earlier_version_s_training_config_yaml_is_compared(tmp_path, settings, started):
    from raft.settings import save_config

    run, found = started
    (run.train_dir / "started.json").unlink()
    check_started(run, changed(settings, learning_rate=1e-2), found)  # nothing to compare with
    save_config(settings, run.config_path)
    check_started(run, changed(settings, max_steps=1), found)
    with pytest.raises(RunFolderError, match="train.learning_rate was 5e-06"):
        check_started(run, changed(settings, learning_rate=1e-2), found)
    with pytest.raises(RunFolderError, match="model was"):
        check_started(run, replace(settings, model="other"), found)


def test_a_refused_resume_leaves_the_run_as_it_was_and_more_steps_go_on(tmp_path, settings):
    run = Run(tmp_path / "run")
    train(plan_training(settings, run))
    before = run.config_path.read_text(), lines(run.train_dir / "metrics.jsonl")
    with pytest.raises(RunFolderError, match="train.method was 'raft'"):
        train(plan_training(changed(settings, method="sft"), run), resume=True)
    assert before == (run.config_path.read_text(), lines(run.train_dir / "metrics.jsonl"))
    train(plan_training(changed(settings, max_steps=3), run), resume=True)
    assert [line["step"] for line in lines(run.train_dir / "metrics.jsonl")] == [1, 2, 3]
    assert read_json(run.train_dir / "started.json")["settings"]["max_steps"] == 2  # the least that may be asked for
    train(plan_training(settings, run), resume=True)  # done already


def test_a_refused_training_leaves_no_settings_for_the_next_one(tmp_path, settings):
    run = Run(tmp_path / "run")
    with pytest.raises(Exception, match="max_length"):
        train(plan_training(changed(settings, max_length=12), run))
    assert not run.config_path.exists() and not (run.train_dir / "started.json").exists()


def unfinished(run):
    refined(run)
    (run.refine_dir / "fused.jsonl").rename(run.refine_dir / "rewrite.jsonl")


@pytest.mark.parametrize("method", ["raft", "sdft"])
def test_an_unfinished_refinement_is_not_trained_on(tmp_path, settings, method):
    run = Run(tmp_path / "run")
    unfinished(run)
    with pytest.raises(RunFolderError, match=f"refinement is unfinished.* `raft refine --resume --run {run.path}`"):
        training_rows(settings, run, config(tmp_path, method=method))
    assert len(training_rows(settings, run, config(tmp_path, method="sft"))) == 4
    assert len(training_rows(settings, run, config(tmp_path, target="raw"))) == 4


def test_the_true_target_of_the_rows_is_named(tmp_path):
    some = [{**row, "kept": i == 0} for i, row in enumerate(rows(4))]
    plain = [{name: row[name] for name in ("id", "question", "answer")} for row in rows(4)]
    raft = config(tmp_path)
    assert targets(some, raft) == "fused answers: 1 of 4 rows kept a fused one, 3 fall back to the reference"
    assert targets(plain, raft).startswith("reference answers: 0 of 4 rows kept a fused one, 4 fall back")
    assert targets(some, config(tmp_path, method="sft")) == "raw answers"
    own = [{**row, "rewritten": "mine"} for row in rows(2)]
    assert targets(own, config(tmp_path, method="sdft")).startswith("rewritten answers: 2 of 2 rows")


def test_a_training_says_how_many_rows_were_kept(tmp_path, settings, capsys):
    run = Run(tmp_path / "run")
    refined(run)
    made = [json.loads(line) for line in (run.refine_dir / "fused.jsonl").read_text().splitlines()]
    made[0] |= {"kept": False, "fused_answer": made[0]["answer"]}
    (run.refine_dir / "fused.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made))
    train(plan_training(changed(settings, max_steps=1), run))
    assert "3 of 4 rows kept a fused one, 1 fall back to the reference" in capsys.readouterr().err
