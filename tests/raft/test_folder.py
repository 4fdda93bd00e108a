"""Opening run folders: what a command may start in, what --overwrite removes, and what stays whatever happens."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raft.cli import main
from raft.demo.stages import Stages
from raft.errors import EngineError, RunFolderError
from raft.runs import Run, read_json
from raft.runs.folder import REPORTS, add_to_run, check_run, open_run
from raft.runs.manifest import MANIFEST, MARKER

ROOT = Path(__file__).parents[2]
DEAD = 2**22 + 1  # beyond the largest id of a process


def fill(run: Path, *names: str) -> None:
    for name in names:
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


def names(run: Path) -> set[str]:
    return {path.name for path in run.iterdir() if path.name not in (MARKER, MANIFEST)}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def refined(folder: Path) -> Run:
    """A run folder after `raft refine`."""
    run = open_run(folder)
    fill(run.path, "config.yaml", "refine/rewrite.jsonl", "refine/fused.jsonl")
    return run


def trained(folder: Path) -> Run:
    """The same after `raft train`, `raft eval` and `raft report`."""
    run = refined(folder)
    open_run(run.path, "train")
    add_to_run(run.path, "eval", ["eval/raft.json"], {})
    add_to_run(run.path, "report", REPORTS, {})
    fill(run.path, "train/metrics.jsonl", "model/config.json", "eval/raft.json", "report.html")
    return run


def test_a_new_or_empty_folder_is_opened(tmp_path):
    run = open_run(tmp_path / "a" / "b")
    assert run.path.is_dir()
    assert (run.refine_dir, run.train_dir) == (run.path / "refine", run.path / "train")
    assert (run.model_dir, run.eval_dir) == (run.path / "model", run.path / "eval")
    assert open_run(run.path).path == run.path  # nothing but the marker and the manifest is in it
    (tmp_path / "empty").mkdir()
    open_run(tmp_path / "empty")


def test_an_existing_run_needs_a_choice(tmp_path):
    run = refined(tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"exists \(config.yaml, refine\); give --resume .* or --overwrite"):
        open_run(run.path)
    open_run(run.path, resume=True)
    assert names(run.path) == {"refine", "config.yaml"}
    open_run(run.path, overwrite=True)
    assert names(run.path) == set()


def test_overwrite_leaves_what_no_command_wrote(tmp_path):
    run = trained(tmp_path / "run")
    fill(run.path, "notes.txt", "data/law.jsonl", "data/test.jsonl", "models/weights", "eval/mine.json")
    open_run(run.path, overwrite=True, inputs={"--data": run.path / "data" / "law.jsonl"})
    assert files(run.path) - {MARKER, MANIFEST} == {
        *("notes.txt", "data/law.jsonl", "data/test.jsonl", "models/weights", "eval/mine.json")
    }


def test_overwrite_removes_of_data_what_the_command_wrote(tmp_path):
    run = open_run(tmp_path / "run", "demo")
    fill(run.path, "demo.json", "data/train.jsonl", "data/mine.jsonl")
    open_run(run.path, "demo", overwrite=True)
    assert files(run.path) == {MARKER, MANIFEST, "data/mine.jsonl"}


@pytest.mark.parametrize(
    ("command", "part"),
    [("train", "model/weights"), ("refine", "refine/notes"), ("refine", "config.yaml"), ("demo", "data/train.jsonl")],
)
def test_what_the_user_put_where_a_command_writes_is_not_replaced(tmp_path, command, part):
    add_to_run(tmp_path / "run", "eval", ["eval/base.json"], {})
    fill(tmp_path / "run", part)
    before = files(tmp_path / "run")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        if "resume" in options and part == "refine/notes":
            continue  # a resumed refinement goes on with what is there
        with pytest.raises(RunFolderError, match=f"wrote it, so raft {command} does not replace it"):
            open_run(tmp_path / "run", command, **options)
    assert files(tmp_path / "run") == before


def test_overwrite_removes_no_input(tmp_path):
    run = trained(tmp_path / "run")
    (tmp_path / "link").symlink_to(run.model_dir)
    before = files(run.path)
    for command, setting, value in (
        ("refine", "--model", run.model_dir),
        ("train", "--model", tmp_path / "link"),
        ("refine", "--data", run.refine_dir / "fused.jsonl"),
        ("refine", "--config", run.config_path),
    ):
        with pytest.raises(RunFolderError, match=f"{setting}: .* is an input of raft {command}"):
            open_run(run.path, command, overwrite=True, inputs={setting: value})
    assert files(run.path) == before
    # What a later stage reads and does not replace is no obstacle.
    open_run(run.path, "train", overwrite=True, inputs={"--data": run.refine_dir / "fused.jsonl"})


def test_resumed_training_does_not_replace_the_model_that_it_starts_from(tmp_path):
    run = trained(tmp_path / "run")
    with pytest.raises(RunFolderError, match="--model: .* is an input of raft train"):
        open_run(run.path, "train", resume=True, inputs={"--model": run.model_dir})


def test_overwrite_does_not_follow_links(tmp_path):
    fill(tmp_path, "elsewhere/precious.txt")
    run = open_run(tmp_path / "run", "train")
    run.model_dir.symlink_to(tmp_path / "elsewhere")
    open_run(run.path, "train", overwrite=True)
    assert (tmp_path / "elsewhere" / "precious.txt").exists() and names(run.path) == set()


def test_overwrite_leaves_a_folder_that_a_link_leads_to(tmp_path):
    run = open_run(tmp_path / "run", "demo")
    fill(tmp_path, "elsewhere/train.jsonl")
    (run.path / "data").symlink_to(tmp_path / "elsewhere")
    open_run(run.path, "demo", overwrite=True)
    assert (tmp_path / "elsewhere" / "train.jsonl").exists()


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
@pytest.mark.parametrize("command", ["refine", "train", "demo", "real"])
def test_a_folder_that_no_run_made_is_refused(tmp_path, command, options):
    fill(tmp_path, "thesis.tex", "data/precious.csv", "models/weights")
    with pytest.raises(RunFolderError, match="no run made this folder .*thesis.tex"):
        open_run(tmp_path, command, **options)
    assert files(tmp_path) == {"thesis.tex", "data/precious.csv", "models/weights"}


def test_the_root_and_the_home_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("/", tmp_path):
        for command in ("refine", "train", "demo", "real"):
            with pytest.raises(RunFolderError, match="found the (root|home) folder"):
                check_run(folder, command, overwrite=True)
        with pytest.raises(RunFolderError, match="found the (root|home) folder"):
            add_to_run(folder, "eval", ["eval/raft.json"], {})
    assert files(tmp_path) == set()


def test_a_folder_with_the_user_s_data_alone_becomes_a_run(tmp_path):
    fill(tmp_path, "run/data/law.jsonl")
    open_run(tmp_path / "run", inputs={"--data": tmp_path / "run/data/law.jsonl"})
    open_run(tmp_path / "run", overwrite=True)
    assert (tmp_path / "run/data/law.jsonl").exists()


def test_refinement_starts_beside_an_evaluation(tmp_path):
    add_to_run(tmp_path / "run", "eval", ["eval/base.json"], {})
    fill(tmp_path / "run", "eval/base.json")
    open_run(tmp_path / "run", "refine")
    assert (tmp_path / "run/eval/base.json").exists()


def test_a_refused_refinement_blocks_no_other_try(tmp_path):
    open_run(tmp_path / "run")
    open_run(tmp_path / "run")


def test_training_goes_beside_the_refinement_and_replaces_only_itself(tmp_path):
    run = trained(tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"exists \(train, model\)"):
        open_run(run.path, "train")
    open_run(run.path, "train", resume=True)
    open_run(run.path, "train", overwrite=True)
    assert names(run.path) == {"config.yaml", "refine"}


def test_training_starts_beside_a_copy_of_a_refinement(tmp_path):
    fill(tmp_path, "run/refine/fused.jsonl")
    open_run(tmp_path / "run", "train")
    open_run(tmp_path / "run", "train", overwrite=True)
    assert (tmp_path / "run/refine/fused.jsonl").exists()


def test_what_a_resumed_run_found_stays_the_user_s(tmp_path):
    """`raft real` goes on elsewhere with a copy of its results."""
    fill(tmp_path, "run/values/base.json", "run/chosen.json")
    run = open_run(tmp_path / "run", "real", resume=True)
    fill(run.path, "real.json")
    with pytest.raises(RunFolderError, match="no command of this run wrote it"):
        open_run(run.path, "real", overwrite=True)


SETTINGS = "model: m\ndata: d\nseed: 0\nrun: r\nrefine:\n  tau: 0.8\ntrain: {}\nevaluate:\n  max_tokens: 8\n"
MARKED_BY = {"the marker": {MARKER: ""}, "config.yaml": {"config.yaml": SETTINGS}}


@pytest.mark.parametrize("mark", MARKED_BY)
def test_of_an_earlier_version_s_folder_the_run_s_own_names_are_replaced(tmp_path, mark):
    fill(tmp_path, "refine/rewrite.jsonl", "train/metrics.jsonl", "model/config.json", "eval/raft.json", "report.html")
    fill(tmp_path, "notes.txt", "data/law.jsonl", "data/train.jsonl")
    for name, text in MARKED_BY[mark].items():
        (tmp_path / name).write_text(text)
    open_run(tmp_path, overwrite=True)
    assert files(tmp_path) == {MARKER, MANIFEST, "notes.txt", "data/law.jsonl", "data/train.jsonl"}


def test_of_an_earlier_version_s_folder_a_model_that_was_not_trained_there_stays(tmp_path):
    fill(tmp_path, MARKER, "refine/rewrite.jsonl", "model/config.json", "train/rows.jsonl", "seeds/packet")
    open_run(tmp_path, overwrite=True)
    assert names(tmp_path) == {"model", "train", "seeds"}


def test_settings_that_the_user_wrote_make_no_run(tmp_path):
    fill(tmp_path, "data/law.jsonl")
    (tmp_path / "config.yaml").write_text(SETTINGS)
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(RunFolderError, match="no run made this folder"):
            open_run(tmp_path, **options)
    assert (tmp_path / "config.yaml").read_text() == SETTINGS


def test_of_an_earlier_demo_its_data_is_replaced(tmp_path):
    fill(tmp_path, MARKER, "demo.json", "data/train.jsonl", "data/mine.jsonl", "baselines/sft/model", "seconds.json")
    open_run(tmp_path, "demo", overwrite=True)
    assert files(tmp_path) == {MARKER, MANIFEST, "data/mine.jsonl"}


@pytest.mark.parametrize("text", ['{"name": "a web page"}', "[1]", "{", '{"written": {"../precious": "refine"}}'])
def test_a_manifest_of_something_else_is_refused(tmp_path, text):
    fill(tmp_path, "precious", "run/refine/rewrite.jsonl")
    (tmp_path / "run" / MANIFEST).write_text(text)
    with pytest.raises(RunFolderError, match="expected the manifest of a run"):
        open_run(tmp_path / "run", overwrite=True)
    assert (tmp_path / "precious").exists() and (tmp_path / "run/refine").exists()


def test_the_manifest_says_which_command_wrote_what(tmp_path):
    run = trained(tmp_path / "run")
    written = read_json(run.path / MANIFEST)["written"]
    assert written["refine"] == written["config.yaml"] == "refine"
    assert written["train"] == written["model"] == "train"
    assert written["eval/raft.json"] == "eval" and written["report.html"] == "report"


def test_an_evaluation_replaces_no_file_of_the_user(tmp_path):
    fill(tmp_path, "run/eval/base.json", "run/data/test.jsonl")
    with pytest.raises(RunFolderError, match="base.json: no command of this run wrote it"):
        add_to_run(tmp_path / "run", "eval", ["eval/base.json"], {})
    with pytest.raises(RunFolderError, match="expected the name of something inside"):
        add_to_run(tmp_path / "run", "eval", ["eval/../../x.json"], {})
    assert files(tmp_path) == {"run/eval/base.json", "run/data/test.jsonl"}


def test_what_a_killed_command_left_half_written_goes_at_the_next_run(tmp_path):
    run = trained(tmp_path / "run")
    left = (f"refine/.fused.jsonl.{DEAD}.tmp", f".config.yaml.{DEAD}.tmp", f".manifest.json.{DEAD}.tmp")
    models = (".model.partial/model.safetensors", "train/.model.partial/config.json")
    own = (
        f"data/.law.jsonl.{DEAD}.tmp",
        ".git/config",
        f"refine/.fused.jsonl.{os.getpid()}.tmp",
        f"eval/.x.{DEAD}.tmp",
    )
    nested = (f"refine/nested/{MARKER}", "refine/nested/.model.partial/x")
    before = files(run.path)
    fill(run.path, *left, *models, *own, *nested)
    add_to_run(run.path, "eval", ["eval/raft.json"], {})  # without the folder's lock
    assert files(run.path) == before | {*models, *own, *nested}
    open_run(run.path, resume=True)
    assert files(run.path) == before | {*own, *nested}


def test_what_cannot_be_a_run(tmp_path):
    fill(tmp_path, "file")
    with pytest.raises(RunFolderError, match="found a file"):
        open_run(tmp_path / "file")
    with pytest.raises(RunFolderError, match="cannot be written"):
        open_run(tmp_path / "file" / "run")
    with pytest.raises(RunFolderError, match="cannot be written"):
        add_to_run(tmp_path / "file" / "run", "eval", ["eval/raft.json"], {})
    with pytest.raises(RunFolderError, match="nothing to resume"):
        open_run(tmp_path / "typo", resume=True)
    with pytest.raises(RunFolderError, match="found both"):
        open_run(tmp_path / "typo", resume=True, overwrite=True)
    assert not (tmp_path / "typo").exists()


def test_two_processes_do_not_work_in_one_run(tmp_path):
    code = "import sys, time; from raft.runs.folder import open_run; open_run(sys.argv[1]); "
    code += "print('open', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(RunFolderError, match=f"process {other.pid} is working"):
            open_run(tmp_path / "run", resume=True)
    finally:
        other.kill()
        other.communicate()
    open_run(tmp_path / "run", resume=True)  # a kill frees it


def test_only_the_first_rank_prepares_the_folder(tmp_path, monkeypatch):
    run = refined(tmp_path / "run")
    monkeypatch.setenv("RANK", "1")
    open_run(run.path, overwrite=True)
    assert names(run.path) == {"config.yaml", "refine"}


def made(folder: Path) -> str:
    """The command of `make demo` for a run folder."""
    command = ["make", "--no-print-directory", "-n", "demo", f"RUN={folder}"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return shown[shown.index("raft demo") :]


def test_make_demo_goes_on_with_one_that_was_stopped(tmp_path):
    assert "--resume" not in made(tmp_path / "new") and "--overwrite" not in made(tmp_path / "new")
    fill(tmp_path, "stopped/demo.json", "finished/demo.json", "finished/summary.json")
    assert "--resume" in made(tmp_path / "stopped")
    assert "--overwrite" in made(tmp_path / "finished")


def test_a_demo_that_cannot_start_leaves_nothing_that_blocks_the_next_try(tmp_path, monkeypatch, capsys):
    def refuse(stages):
        raise EngineError("vLLM could not start: no")

    monkeypatch.setattr(Stages, "engine", property(refuse))
    folder = tmp_path / "demo"
    assert main(["demo", "--run", str(folder), "--engine", "vllm"]) == 2
    assert "vLLM could not start: no" in capsys.readouterr().err
    assert names(folder) == set()
    assert main(["demo", "--run", str(folder), "--seed", "3"]) == 2  # with other settings: gets as far as the first
    assert "vLLM could not start: no" in capsys.readouterr().err
