"""The command line: whatever is wrong with the input ends in one line and exit code 2, before anything is written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from raft.cli import main, plan_refinement
from raft.row_files import FORMATS
from raft.runs import Run
from raft.settings import Config
from tests.tiny import build

ROOT = Path(__file__).parents[2]
ROWS = [{"question": f"What is {i}?", "answer": f"It is {i}."} for i in range(3)]
REFINED = {"fused_answer": "It is so.", "rewritten": "So it is.", "similarity": 0.9, "kept": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build("qwen3", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def data(tmp_path) -> Path:
    return jsonl(tmp_path / "rows.jsonl", ROWS)


@pytest.fixture
def broken(model, tmp_path) -> Path:
    """A copy of the model to take something away from."""
    return Path(shutil.copytree(model, tmp_path / "broken"))


def jsonl(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def error_of(capsys, *arguments: object) -> str:
    """The one line that a refused command prints."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert code == 2, err
    assert out == "" and err.startswith("raft: error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert "Traceback" not in err
    return err


def raft(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "raft", *map(str, arguments)]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=options.pop("cwd", ROOT), timeout=120, **options
    )


def test_version_and_help_from_the_repository_root():
    assert raft("--version").stdout.startswith("raft 0.")
    for command in ("demo", "refine", "train", "eval", "report"):
        shown = raft(command, "--help")
        assert shown.returncode == 0 and "usage: raft " + command in shown.stdout


def test_an_error_of_the_real_process(tmp_path):
    shown = raft("refine", "--model", "m", "--data", tmp_path / "none.jsonl", "--run", tmp_path / "run")
    assert shown.returncode == 2 and shown.stdout == ""
    assert shown.stderr == f"raft: error: {tmp_path}/none.jsonl: no such file, expected {FORMATS}\n"
    assert not (tmp_path / "run").exists()


HEAVY = ("torch", "transformers", "datasets", "vllm", "sentence_transformers")


def without_importing(modules: tuple[str, ...], *arguments: object) -> subprocess.CompletedProcess:
    """`raft` with these arguments; fails if it imported one of the modules."""
    code = (
        "import sys; from raft.cli import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code\n"
        f"imported = set({modules!r}) & set(sys.modules); assert not imported, imported; sys.exit(code)"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)


def test_bad_input_is_refused_without_importing_torch(data, broken, tmp_path):
    (broken / "tokenizer.json").unlink()
    for command in ("refine", "train"):
        shown = without_importing(HEAVY, command, "--model", broken, "--data", data, "--run", tmp_path / "run")
        assert shown.returncode == 2 and "has no tokenizer" in shown.stderr, shown.stderr


def test_what_checks_no_setting_does_not_import_pydantic_either(tmp_path):
    assert without_importing((*HEAVY, "pydantic"), "refine", "--help").returncode == 0
    for arguments in (["--modle", "x"], ["--model", "m", "--data", tmp_path / "none.jsonl", "--run", tmp_path / "run"]):
        shown = without_importing((*HEAVY, "pydantic"), "refine", *arguments)
        assert shown.returncode == 2 and shown.stderr.startswith("raft: error: "), shown.stderr
    shown = without_importing(HEAVY, "refine", "tau=2", "--run", tmp_path / "run")
    assert shown.returncode == 2 and "refine.tau: expected a number from 0 to 1, found 2" in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "command"),
        (["tarin"], "'tarin'"),
        (["refine", "--modle", "m"], "--modle"),
        (["refine", "stray"], "stray"),
        (["report", "--run", "x", "tau=1"], "tau=1"),
        (["report"], "--run"),
        (["demo", "--seed", "-1"], "-1"),
        (["demo", "--seed", "x"], "'x'"),
        (["refine", "--preview", "0"], "'0'"),
        (["refine", "--resume", "--overwrite"], "not allowed with"),
        (["demo", "--domain", "astrology"], "'astrology'"),
        (["demo", "--engine", "x"], "'x'"),
        (["refine"], "no run given: add --run"),
        (["refine", "--run", "x"], "no model given: add --model"),
        (["refine", "--run", "x", "--model", "m"], "no data given: add --data"),
        (["train", "--run", "x", "--model", "m"], "no data given"),
        (["eval", "--run", "x"], "no data given"),
    ],
)
def test_bad_arguments(capsys, tmp_path, monkeypatch, arguments, part):
    monkeypatch.chdir(tmp_path)
    assert part in error_of(capsys, *arguments)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", ["refine", "train", "eval"])
@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("none.jsonl", None, ["no such file"]),
        ("folder.jsonl", "folder", ["is a directory"]),
        ("d.txt", "a,b\n", ["'.txt'"]),
        ("d.csv", "a,b\n", ["line 1", "a header line", "found a, b"]),
        ("d.jsonl", "", ["no rows"]),
        ("d.jsonl", '{"question": "q", "answer": "a"}\n{"question"\n', ["line 2", "JSON"]),
        ("d.jsonl", "[1]\n", ["line 1", "expected an object"]),
        ("d.jsonl", '{"question": 1, "answer": "a"}\n', ["line 1", '"question"', "found 1"]),
        ("d.jsonl", '{"answer": "a"}\n', ["line 1", '"question" is missing']),
        ("d.jsonl", '{"question": " ", "answer": "a"}\n', ["line 1", '"question" is empty']),
        ("d.jsonl", '{"id": 1, "question": "q", "answer": "a"}\n' * 2, ["line 2", '"id"', '"1"']),
        ("d.jsonl", '{"messages": [{"role": "robot", "content": "x"}]}\n', ["line 1", "messages[0].role", '"robot"']),
    ],
)
def test_bad_rows(capsys, tmp_path, model, command, name, content, parts):
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    message = error_of(capsys, command, "--model", model, "--data", path, "--run", tmp_path / "run")
    for part in [str(path), *parts]:
        assert part in message
    assert not (tmp_path / "run").exists()


def test_rows_without_answers_are_refused_where_answers_are_needed(capsys, tmp_path, model):
    path = jsonl(tmp_path / "d.jsonl", [{"messages": [{"role": "user", "content": "q"}]}])
    for command in ("refine", "train"):
        message = error_of(capsys, command, "--model", model, "--data", path, "--run", tmp_path / "run")
        assert "line 1" in message and "an assistant message at the end" in message


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("tau=1.5", ["refine.tau", "from 0 to 1", "1.5"]),
        ("refine.tau=-1", ["refine.tau", "-1"]),
        ("rounds=0", ["refine.rounds", "at least 1"]),
        ("tua=0.5", ["'refine.tua'", "did you mean 'refine.tau'"]),
    ],
)
def test_bad_settings_of_the_refinement(capsys, tmp_path, model, data, setting, parts):
    message = error_of(capsys, "refine", "--model", model, "--data", data, "--run", tmp_path / "run", setting)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("temperature=0", ["train.temperature", "above 0"]),
        ("train.temperature=-1", ["train.temperature", "-1"]),
        ("top_k=0", ["train.top_k", "at least 1"]),
        ("top_k=937", ["train.top_k", "at most 936", "vocabulary", "937"]),
        ("topk=5", ["did you mean 'train.top_k'"]),
        ("refine.tau=2", ["refine.tau"]),
        ("method=rafd", ["train.method", "raft", "'rafd'"]),
    ],
)
def test_bad_settings_of_the_training(capsys, tmp_path, model, data, setting, parts):
    message = error_of(capsys, "train", "--model", model, "--data", data, "--run", tmp_path / "run", setting)
    for part in parts:
        assert part in message
    assert not (tmp_path / "run").exists()


def test_settings_may_stand_between_the_options(capsys, tmp_path, model, data):
    arguments = [
        "train",
        "top_k=512",
        "--model",
        model,
        "train.top_k=2000",
        "--data",
        data,
        "--run",
        tmp_path / "run",
        "seed=1",
    ]
    assert "found 2000" in error_of(capsys, *arguments)


def test_a_config_file_and_its_errors(capsys, tmp_path, model, data):
    path = tmp_path / "c.yaml"
    path.write_text(f"model: {model}\ndata: {data}\nrun: {tmp_path / 'run'}\ntrain:\n  top_k: 5000\n")
    assert "found 5000" in error_of(capsys, "train", "--config", path)
    path.write_text("modle: m\n")
    message = error_of(capsys, "train", "--config", path, "--run", tmp_path / "run")
    assert f"{path}, line 1" in message and "did you mean 'model'" in message
    assert "no such file" in error_of(capsys, "train", "--config", tmp_path / "none.yaml", "--run", tmp_path / "run")


@pytest.mark.parametrize(
    ("missing", "parts"),
    [
        ("config.json", ["no config.json"]),
        ("model.safetensors", ["model.safetensors", "no weights"]),
        ("tokenizer.json", ["no tokenizer"]),
        ("chat_template.jinja", ["no chat template"]),
    ],
)
@pytest.mark.parametrize("command", ["refine", "train", "eval"])
def test_a_model_that_lacks_something(capsys, tmp_path, broken, data, command, missing, parts):
    (broken / missing).unlink()
    message = error_of(capsys, command, "--model", broken, "--data", data, "--run", tmp_path / "run")
    for part in [str(broken), *parts]:
        assert part in message
    assert not (tmp_path / "run").exists()


def test_models_that_cannot_be_used(capsys, tmp_path, broken, data):
    def error(model: object) -> str:
        return error_of(capsys, "refine", "--model", model, "--data", data, "--run", tmp_path / "run")

    assert "no such folder" in error(tmp_path / "none")
    assert "found a file" in error(data)
    assert "HF_HUB_OFFLINE" in error("someone/model-that-is-not-cached")
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[:-1])
    assert f"expected {len(weights)} bytes, found {len(weights) - 1}" in error(broken)
    (broken / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "no header" in error(broken)
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    assert "pickles can run code" in error(broken)
    (broken / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    assert "names model-1.safetensors, which is missing" in error(broken)
    (broken / "config.json").write_text("{")
    assert "config.json is not readable JSON" in error(broken)
    (broken / "config.json").write_text("{}")
    assert '"model_type"' in error(broken)
    (broken / "config.json").rename(broken / "adapter_config.json")
    assert "LoRA adapter" in error(broken)


def test_a_model_whose_weights_do_not_fill_it_is_refused(broken):
    from safetensors.torch import load_file, save_file

    from raft.errors import ModelError
    from raft.models import load_model, load_tokenizer

    assert load_tokenizer(broken).chat_template
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="lack 1 tensors that the model needs, the first is model.norm.weight"):
        load_model(broken)


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a finished run of an earlier version, without a manifest."""
    jsonl(tmp_path / "run" / "refine" / "rewrite.jsonl", [{}])
    jsonl(tmp_path / "run" / "refine" / "fused.jsonl", [ROWS[0] | REFINED])
    jsonl(tmp_path / "run" / "train" / "metrics.jsonl", [{}])
    (tmp_path / "run" / "model").mkdir()
    (tmp_path / "run" / ".raft-run").touch()
    return tmp_path / "run"


@pytest.mark.parametrize("command", ["refine", "train", "demo"])
def test_an_existing_run_folder_needs_a_choice(capsys, tmp_path, model, data, run, command):
    fused = run / "refine" / "fused.jsonl"
    inputs = [] if command == "demo" else ["--model", model, "--data", data]
    message = error_of(capsys, command, *inputs, "--run", tmp_path / "run")
    assert "--resume" in message and "--overwrite" in message
    assert "nothing to resume" in error_of(capsys, command, *inputs, "--run", tmp_path / "typo", "--resume")
    assert "found a file" in error_of(capsys, command, *inputs, "--run", fused, "--resume")
    assert fused.exists()


def test_overwrite_keeps_the_data_in_the_run_folder(monkeypatch, model, run):
    kept = [jsonl(run / name, ROWS) for name in ("data/law.jsonl", "data/test.jsonl", "notes.jsonl")]
    monkeypatch.setattr("raft.refine.refinement.refine_run", lambda *_, **__: None)
    arguments = ["refine", "--model", model, "--data", kept[0], "--run", run, "--overwrite"]
    assert main([str(argument) for argument in arguments]) == 0
    assert all(path.exists() for path in kept) and not (run / "refine").exists()


@pytest.mark.parametrize("command", ["refine", "train"])
def test_overwrite_removes_nothing_if_an_input_would_go(capsys, model, data, run, command):
    shutil.copytree(model, run / "model", dirs_exist_ok=True)
    before = sorted(run.rglob("*"))
    message = error_of(capsys, command, "--model", run / "model", "--data", data, "--run", run, "--overwrite")
    assert f"--model: {run / 'model'} is an input of raft {command}" in message
    assert sorted(run.rglob("*")) == before


def test_an_unfinished_refinement_is_not_trained_on(capsys, model, data, run):
    (run / "refine" / "fused.jsonl").unlink()
    before = sorted(run.rglob("*"))
    for choice in ("--overwrite", "--resume"):
        message = error_of(capsys, "train", "--model", model, "--data", data, "--run", run, choice)
        assert "the refinement is unfinished" in message and f"raft refine --resume --run {run}" in message
    assert sorted(run.rglob("*")) == before


def test_a_refused_refinement_does_not_block_the_next_one(capsys, tmp_path, model, data):
    arguments = ["refine", "--model", model, "--data", data, "--run", tmp_path / "run"]
    for _ in range(2):
        message = error_of(capsys, *arguments, f"embedding_model={tmp_path / 'none'}")
        assert "embedding" in message
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_an_evaluation_is_not_replaced_unasked(capsys, tmp_path, model, data):
    jsonl(tmp_path / "run" / "eval" / "tiny.json", [{}])
    message = error_of(capsys, "eval", "--model", model, "--data", data, "--run", tmp_path / "run")
    assert "tiny.json: exists" in message and "--overwrite" in message
    assert "name" in error_of(
        capsys, "eval", "--model", model, "--data", data, "--run", tmp_path / "run", "--name", "../x"
    )


def test_an_evaluation_needs_a_model(capsys, tmp_path, data):
    assert "no model in the run folder" in error_of(capsys, "eval", "--data", data, "--run", tmp_path / "run")


def test_a_report_needs_a_run(capsys, tmp_path):
    assert "no such run folder" in error_of(capsys, "report", "--run", tmp_path / "none")
    assert "raft: error: " in error_of(capsys, "report", "--run", tmp_path)


def test_a_training_reads_its_rows_once(model, tmp_path):
    rows = tmp_path / "rows.jsonl"
    os.mkfifo(rows)  # what is read of it is gone
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    writer = threading.Thread(target=rows.write_text, args=[text])
    writer.start()
    settings = ["method=sft", "max_steps=1", "use_cpu=true", "report_to=none", "per_device_train_batch_size=3"]
    folder = tmp_path / "run"
    assert main(["train", "--model", str(model), "--data", str(rows), "--run", str(folder), *settings]) == 0
    writer.join()
    assert (folder / "model" / "config.json").exists()


def test_the_data_may_be_a_folder_of_datasets(capsys, tmp_path, model, run):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    saved = tmp_path / "saved"
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(saved)
    config = Config(model=str(model), data=str(saved))
    assert [row["question"] for row in plan_refinement(config, Run(run)).rows] == [row["question"] for row in ROWS]
    # Inside of what the command would replace, the folder counts as its input like a file.
    inside = run / "train" / "rows"
    shutil.copytree(saved, inside)
    capsys.readouterr()  # what datasets says while it saves
    message = error_of(capsys, "train", "--model", model, "--data", inside, "--run", run, "--overwrite")
    assert f"--data: {inside} is an input of raft train" in message and (inside / "dataset_dict.json").exists()


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_stopped_command_says_how_to_go_on(tmp_path, number, name):
    rows = tmp_path / "rows.jsonl"
    os.mkfifo(rows)  # reading it waits until someone writes
    command = [sys.executable, "-m", "raft", "refine", "--model", "m", "--data", rows, "--run", tmp_path / "run"]
    process = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    writer = os.open(rows, os.O_WRONLY)  # returns when the command has opened the file
    time.sleep(0.2)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    os.close(writer)
    assert process.returncode == 128 + number
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"raft: stopped by {name}") and "--resume" in err
