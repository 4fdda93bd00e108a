"""The benchmark of whole steps: packed and unpacked do the same work, counters count what they say, records hold what
the contract names, and goals follow from them."""

import json
import random
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from bench.common import plot
from bench.common.limits import Ceilings
from bench.steps import command, goals, providers, records, train, work
from bench.steps.floors import floor_s
from bench.steps.our_steps import Variant
from bench.steps.probes import Stopwatch, Tokens
from bench.steps.providers import make
from bench.steps.work import (
    WORKS,
    Lengths,
    answer_tokens,
    ends,
    make_model,
    make_prompts,
    make_rows,
    make_tokenizer,
    real,
)
from tests import tiny

pytestmark = pytest.mark.usefixtures("same_process")

QUICK, CPU = WORKS["quick"], WORKS["cpu"]
FIELDS = ["op", "provider", "device", "n", "h", "v", "k", "dtype", "regime", "pass", "ms_p20", "ms_p50", "ms_p80"]
FIELDS += ["peak_mib", "versions", "commit", "command"]  # the contract; what follows is for the tables
FIELDS += ["objective", "generation", "weights", "model", "parameters", "batch", "steps_per_refresh", "steps"]
FIELDS += ["ms_per_1000_tokens", "seconds", "refresh_percent", "tokens", "padding", "rollout_length", "parameter_mib"]
FIELDS += ["student_mib", "floor_ms", "percent_of_floor", "limit", "threads"]


# The work


def test_rows_have_mixed_lengths_and_no_word_that_ends_an_answer():
    rows, tokenizer = make_rows(CPU), make_tokenizer(CPU)
    assert rows == make_rows(CPU) and len(rows) == 16 * CPU.batch
    answers = sorted(len(tokenizer(row["answer"])["input_ids"]) for row in rows)
    median = answers[len(answers) // 2]
    assert 30 <= median <= 50 and answers[0] < median / 4 and 3 * median < answers[-1] <= CPU.answers.most
    assert answer_tokens(CPU) == pytest.approx(CPU.batch * (sum(answers) / len(rows) + 1))
    text = tokenizer(" ".join(row["question"] + " " + row["answer"] for row in rows))["input_ids"]
    assert 6 <= min(text) and max(text) < CPU.vocabulary - ends(CPU)


def test_lengths_are_log_normal():
    generator = random.Random(0)
    drawn = [Lengths(100, 0.5, 10**6).draw(generator) for _ in range(4000)]
    logs = torch.tensor(drawn).log()
    assert logs.mean().exp() == pytest.approx(100, rel=0.05) and logs.std() == pytest.approx(0.5, rel=0.05)
    assert {Lengths(9, 3.0, 4).draw(generator) for _ in range(200)} == {1, 2, 3, 4}


def test_rollouts_of_a_random_model_have_the_lengths_that_were_asked_for():
    from raft.engines import HFEngine, Sampling

    torch.manual_seed(0)
    engine = HFEngine(make_model(QUICK, "cpu"), make_tokenizer(QUICK), max_model_len=QUICK.max_length)
    found = engine.generate([[7, 8, 9]] * 400, Sampling(max_tokens=QUICK.rollout_most))
    lengths = [len(completion.token_ids) for completion in found]
    stops = 1 / QUICK.rollout_mean
    assert sum(lengths) / 400 == pytest.approx((1 - (1 - stops) ** QUICK.rollout_most) / stops, rel=0.1)


@pytest.mark.parametrize(("name", "millions"), [("smollm3-3b", 3075), ("llama-3.2-3b", 3213), ("phi-4-mini", 3836)])
def test_the_shapes_on_a_gpu_are_those_of_the_models(name, millions):
    model = make_model(WORKS[name], "meta")
    assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=1) and model.dtype == torch.bfloat16
    assert all(p.device.type == "meta" for p in model.parameters())


# A real checkpoint with rows of a file


@pytest.fixture
def checkpoint(tmp_path):
    """A folder, and a file of 32 usable rows among others."""
    folder = tiny.build("llama", tmp_path / "TinyLlama")
    rows = [{"question": f"what is {i}?", "answer": f"it is {i} of {i}" * (1 + i % 5)} for i in range(40)]
    rows[3]["split"], rows[4]["answer"], rows[5]["answer"] = "test", " ", "x" * 3000
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, tmp_path / "rows.jsonl"


def test_work_of_a_checkpoint(checkpoint):
    folder, data = checkpoint
    work = real(str(folder), str(data), batch=2)
    assert (work.name, work.batch, work.rows) == ("TinyLlama", 2, 32)
    rows = make_rows(work)
    questions = [row["question"] for row in rows]
    assert len(rows) == 32 and not {"what is 3?", "what is 4?", "what is 5?"} & set(questions)
    assert [row["id"] for row in rows] == [f"r{i}" for i in range(32)]
    model, tokenizer = make_model(work, "cpu"), make_tokenizer(work)
    assert model.dtype == torch.float32 and model.config.vocab_size == work.vocabulary == len(tokenizer)
    lengths = [len(tokenizer(row["answer"], add_special_tokens=False)["input_ids"]) + 1 for row in rows]
    assert answer_tokens(work) == pytest.approx(2 * sum(lengths) / 32)
    ids = make_prompts(work, 33)
    assert "what is 0?" in tokenizer.decode(ids[0]) and ids[32] == ids[0]


def test_what_a_checkpoint_needs_is_said_in_a_line(checkpoint, tmp_path, monkeypatch):
    folder, data = checkpoint
    for name in ("RAFT_REAL_MODEL", "RAFT_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)

    def refused(*words):
        with pytest.raises(SystemExit) as error:
            train.main(["--quick", "--device", "cpu", *words])
        return str(error.value)

    assert refused("--model") == "--model: name a folder, here or in RAFT_REAL_MODEL"
    assert refused("--model", str(folder)).startswith("--data: missing; a file of rows goes with --model")
    assert refused("--model", str(folder), "--data", "none.jsonl").startswith("--data: none.jsonl; a file of rows")
    assert "32 rows" in refused("--model", str(folder), "--batch", "2", "--data", str(few(tmp_path)))
    assert "no checkpoint can be read there" in refused("--model", str(tmp_path), "--data", str(data))
    monkeypatch.setenv("RAFT_REAL_MODEL", str(folder))
    monkeypatch.setenv("RAFT_DATA_DIR", str(tmp_path))
    args = train.parse(["--model", "--data", "rows.jsonl", "--batch", "2"])
    assert command.checkpoint(args) == real(str(folder), str(data), 2)


def few(folder: Path) -> Path:
    (folder / "few.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    return folder / "few.jsonl"


@pytest.mark.slow
def test_sft_alone_ours_and_trls_on_a_checkpoint(checkpoint, tmp_path, monkeypatch):
    pytest.importorskip("trl")
    folder, _ = checkpoint
    monkeypatch.setenv("RAFT_REAL_MODEL", str(folder))
    monkeypatch.setenv("RAFT_DATA_DIR", str(tmp_path))
    words = ["--quick", "--device", "cpu", "--model", "--data", "rows.jsonl", "--batch", "2", "--steps", "2"]
    out = tmp_path / "records.json"
    assert train.main([*words, "--providers", "ours-sft,trl-sft", "--out", str(out)]) == 0
    ours, trl = json.loads(out.read_text())
    assert (ours["provider"], trl["provider"]) == ("ours-sft", "trl-sft") and ours["model"] == "TinyLlama"
    assert str(tmp_path) not in json.dumps([ours["command"], ours["model"]])  # no path of this machine
    assert ours["tokens"]["student"] == pytest.approx(
        trl["tokens"]["student"], rel=0.2
    )  # another mark at the end of turns
    assert ours["regime"] == "rows of rows.jsonl"
    assert ours["padding"]["student"] == 0 < trl["padding"]["student"]
    assert ours["seconds"]["rollout"] == ours["seconds"]["teacher"] == 0 < ours["seconds"]["forward_backward"]


def test_goals_on_a_real_model():
    found = [
        record(steps=[step(5.0)] * 4, mib=90.0),
        record("ours-sft", [step(2.0)] * 4, mib=50.0),
        record("trl-sft", [step(2.5)] * 4, mib=40.0),
        record("trl-sdft", [step(5.0)] * 4, mib=100.0),
    ]
    lines = [line for line in goal_lines(*found) if "trl-s" in line]
    assert lines == [
        "ours-sft <= 1 x the time of trl-sft: 0.80 met",
        "ours-sft <= 1 x the peak memory of trl-sft: 1.25 missed",
        "ours-shared <= 0.6 x the time of trl-sdft and trl-sft together: 0.67 missed",
        "ours-shared <= 1 x the peak memory of trl-sdft: 0.90 met",
    ]


# Providers


def test_names_of_providers(monkeypatch):
    assert providers.steps_per_refresh("ours-shared-r16") == 16
    assert providers.steps_per_refresh("trl-sdft-ce") == 1
    assert Variant.of("ours-hf-r4-p512") == Variant("hf", False, 4, 512) and Variant.of("trl-sdft") is None
    monkeypatch.setattr(providers.importlib.util, "find_spec", lambda name: None)
    assert providers.check("ours-hf-unpacked-r4") is None
    assert providers.check("ours-copied") == "vllm is not installed"
    assert providers.check("trl-distillation-ce") == "trl is not installed"
    without = providers.defaults(quick=False)
    assert without[:4] == ["ours-hf", "ours-hf-unpacked", "ours-hf-r4", "ours-hf-r16"] and "ours-shared" in without
    with pytest.raises(ValueError, match="trl-dpo unknown"):
        providers.check("trl-dpo")


def test_wrong_words_on_the_command_line_are_named(capsys):
    with pytest.raises(SystemExit):
        train.parse(["--providers", "ours-hf,apex"])
    assert "--providers: apex unknown; there are ours-shared, ours-copied" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.parse(["--models", "cpu,gpt-2"])
    assert "--models: gpt-2 unknown; there are quick, cpu, smollm3-3b" in capsys.readouterr().err


def losses(name, folder, steps=2):
    """Lines of metrics.jsonl, and the tokens of the last step."""
    torch.manual_seed(0)
    setup = make(name, QUICK, "cpu", folder, steps)
    setup.trainer.train()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()], setup


def test_packed_and_unpacked_have_the_same_losses(tmp_path):
    packed, ours = losses("ours-hf", tmp_path / "packed")
    padded, theirs = losses("ours-hf-unpacked", tmp_path / "padded")
    for a, b in zip(packed, padded, strict=True):
        for name in ("loss", "loss_sft", "loss_kl", "lambda", "grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-4), name
    a, b = ours.tokens.take(), theirs.tokens.take()
    assert min(a["real"].values()) > 0
    assert {**a["real"], "student": 0} == {**b["real"], "student": 0}
    assert a["real"]["student"] < b["real"]["student"]  # a question is in a pack once, for its answer and its rollout
    assert a["real"]["student"] == sum(line["tokens"] for line in packed)
    assert a["padding"]["student"] == a["padding"]["teacher"] == 0 < min(b["padding"].values())
    seconds = ours.seconds()
    assert seconds == packed[-1]["seconds"] and 0 < seconds["rollout"] < 60


@pytest.mark.slow
def test_trl_with_the_cross_entropy_of_the_answers(tmp_path):
    """DistillationTrainer's own loss is 0 in the first step, where its teacher is the student: the rest was added."""
    pytest.importorskip("trl")
    found = {}
    for name in ("trl-distillation", "trl-distillation-ce", "trl-sdft", "trl-sdft-ce"):
        torch.manual_seed(0)
        setup = make(name, QUICK, "cpu", tmp_path / name, 1)
        setup.trainer.train()
        loss = next(line["loss"] for line in setup.trainer.state.log_history if "loss" in line)
        found[name] = loss, setup.tokens.take(), setup.seconds()
    log_v = torch.tensor(QUICK.vocabulary).log().item()  # of a model that knows nothing
    assert abs(found["trl-distillation"][0]) < 1e-3
    for kind in ("distillation", "sdft"):
        plain, with_ce = found[f"trl-{kind}"], found[f"trl-{kind}-ce"]
        assert with_ce[0] - plain[0] == pytest.approx(log_v, rel=0.1)
        # The same rows and rollouts, and the answers beside them.
        assert with_ce[1]["real"]["rollout"] == plain[1]["real"]["rollout"]
        assert with_ce[1]["real"]["student"] > plain[1]["real"]["student"] + 4 * QUICK.batch
        assert plain[1]["padding"]["student"] > 0
        assert set(plain[2]) == {"rollout", "teacher", "forward_backward", "optimizer"}
    assert found["trl-sdft"][1]["real"]["teacher"] > found["trl-distillation"][1]["real"]["teacher"]


# What is watched in a step


def test_a_part_within_a_part_counts_once():
    watch = Stopwatch("cpu")
    with watch.part("outer"):
        time.sleep(0.02)
        with watch.part("inner"):
            time.sleep(0.05)
    time.sleep(0.03)
    watch.since_mark("rest")
    seconds = watch.take()
    assert seconds["outer"] == pytest.approx(0.02, abs=0.015) and seconds["inner"] == pytest.approx(0.05, abs=0.015)
    assert seconds["rest"] == pytest.approx(0.03, abs=0.015) and watch.take() == {}


class Decoder(nn.Module):
    def forward(self, input_ids=None, attention_mask=None):
        return input_ids


def test_padding_is_what_belongs_to_no_sequence():
    tokens, student, teacher = Tokens(), Decoder(), Decoder()
    tokens.watch(student, "student")
    tokens.watch(teacher, "teacher")
    ids, mask = torch.zeros(2, 5, dtype=torch.long), torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    student(input_ids=ids, attention_mask=mask)
    teacher(input_ids=ids)
    with tokens.generating():
        student(input_ids=ids, attention_mask=mask)
        for _ in range(3):
            student(input_ids=ids[:, :1])
    tokens.drawn([[1, 2, 3, 4, 5], [1, 2, 3]], [[1, 2, 3, 4], [1, 2]])
    found = tokens.take()
    # Prompts of 5 and 3 tokens and completions of 4 and 2, whose last tokens are fed to nobody: 12 of 16 that were fed.
    assert found["real"] == {"rollout": 12, "teacher": 10, "student": 8}
    assert found["padding"] == {"rollout": 4, "teacher": 0, "student": 2}
    assert (found["completions"], found["completion"], found["longest"]) == (2, 6, 4)
    tokens.drawn([[1, 2]], [[3]])  # an engine that runs no module of ours
    assert tokens.take()["padding"]["rollout"] == 0


# Records and goals


def test_floors_by_hand():
    shape = work.WORKS["quick"]  # H=64 V=1024 K=64; 147,904 parameters, 82,368 of them in the layers
    tokens = {"real": {"rollout": 100, "teacher": 200, "student": 300}, "completion": 50, "longest": 8, "answer": 60}
    floor = floor_s(shape, 147_904, 4, tokens, "copied", Ceilings(1e9, 1e9))
    layers, head = 82_368, 65_536
    assert floor == pytest.approx(
        {
            "rollout": (2 * layers * 100 + 2 * head * 50) / 1e9,
            "teacher": (2 * layers * 200 + 2 * head * 50) / 1e9,
            "forward_backward": (6 * layers * 300 + 6 * head * 60 + 6 * 64 * 64 * 50) / 1e9,
            "optimizer": 28 * 147_904 / 1e9,
            "refresh": 8 * 147_904 / 1e9,
        }
    )
    slow_memory = floor_s(shape, 147_904, 4, tokens, "shared", Ceilings(1e9, 1e6))
    assert slow_memory["rollout"] == pytest.approx(8 * 147_904 * 4 / 1e6) and slow_memory["refresh"] == 0


ABOUT = {"objective": "all", "generation": "vLLM", "weights": "shared", "parameters": 147_904, "student_mib": 0.5}
COUNTED = {
    "real": {"rollout": 100, "teacher": 200, "student": 500},
    "padding": {"rollout": 0, "teacher": 0, "student": 0},
    "completions": 4,
    "completion": 50,
    "longest": 20,
}


def step(seconds, **parts):
    return {"seconds": seconds, "parts": parts, "tokens": COUNTED, "loss": 1.0}


def record(provider="ours-shared", steps=(), every=1, mib=100.0, final=True, about=(), **changes):
    steps = list(steps) or [step(0.1, rollout=0.04, teacher=0.02, refresh=0.0005)]
    memory = {"peak_mib": mib, "parameter_mib": mib} if final else None
    found = records.step_record(
        provider,
        QUICK,
        "cpu, 2 threads",
        ABOUT | {"threads": 2} | dict(about),
        memory,
        steps,
        every,
        Ceilings(1e11, 1e10),
        "python -m bench train",
    )
    return found | changes


def test_percentiles_and_parts_of_a_record():
    steps = [step(s, rollout=s / 2, teacher=0.01, refresh=0.001) for s in (0.1, 0.2, 0.3, 0.4, 0.5, 9.0)]
    found = record(steps=steps)
    assert sorted(found) == sorted(FIELDS)
    assert (found["ms_p20"], found["ms_p50"], found["ms_p80"]) == (200, 350, 500)
    # Parts are means over the steps from 0.2 to 0.5 s, and add up to the mean of those.
    assert found["seconds"] == pytest.approx(
        {"rollout": 0.175, "teacher": 0.01, "forward_backward": 0, "optimizer": 0, "refresh": 0.001, "other": 0.164}
    )
    assert found["refresh_percent"] == pytest.approx(100 * 0.001 / 0.35, rel=1e-4)
    assert found["n"] == 500 and found["ms_per_1000_tokens"] == 700 and found["rollout_length"] == 12.5
    assert found["percent_of_floor"] == pytest.approx(100 * sum(found["floor_ms"].values()) / 350, rel=1e-3)
    assert record(final=False)["peak_mib"] is None


def test_steps_that_share_a_refresh_count_together():
    steps = [step(s, rollout=s - 0.1) for s in (0.9, 0.1, 0.1, 0.1, 1.3, 0.1, 0.1, 0.1)]
    found = record(steps=[*steps, step(99.0)], every=4)
    assert (found["ms_p20"], found["ms_p50"], found["ms_p80"]) == (320, 350, 380)
    assert found["seconds"]["rollout"] == pytest.approx(0.25) and found["steps_per_refresh"] == 4


def goal_lines(*found):
    lines = goals.summary(list(found))
    assert all(line.startswith("qwen3-quick: ") for line in lines)
    return [line.split("goal: ")[1] for line in lines if "goal: " in line]


def test_goals_from_records():
    student = record()["student_mib"]
    found = [
        record(ms_p50=100.0, refresh_percent=0.2),
        record("ours-copied", mib=100 + student),
        record("ours-shared-unpacked", ms_p50=160.0),
        record("trl-sdft", ms_p50=120.0),
        record("trl-sdft-ce", ms_p50=190.0),
        record("trl-distillation-ce", ms_p50=300.0),
    ]
    assert goal_lines(*found) == [
        "refresh with shared weights <= 1 % of the step: 0.20 met",
        "shared weights lower the peak below copied ones by >= 0.95 copies of the student: 1.00 met",
        "shared weights lower what all parameters hold by >= 1 copies of the student: 1.00 met",
        "ours-shared, packed step >= 1.5 x faster than ours-shared-unpacked: 1.60 met",
        "ours-shared, whole step >= 2 x faster than trl-sdft-ce on the same work: 1.90 missed",
        "ours-shared, whole step >= 2 x faster than trl-distillation-ce on the same work: 3.00 met",
        "ours-shared <= 0 padding tokens a step in the forwards of teacher and student: 0.00 met",
    ]


def test_goals_without_vllm_and_what_is_missing():
    wasteful = {"rollout": 9.0, "teacher": 3.0, "student": 4.0}
    assert goal_lines(record("ours-hf", padding=wasteful, peak_mib=None)) == [
        "refresh with shared weights <= 1 % of the step: not measured",
        "shared weights lower the peak below copied ones by >= 0.95 copies of the student: not measured",
        "shared weights lower what all parameters hold by >= 1 copies of the student: not measured",
        "ours-hf, packed step >= 1.5 x faster than ours-hf-unpacked: not measured",
        "ours-hf, whole step >= 2 x faster than TRL on the same work: not measured",
        "ours-hf <= 0 padding tokens a step in the forwards of teacher and student: 7.00 missed",
    ]
    interrupted = goal_lines(record(), record("ours-copied", final=False))
    assert interrupted[1].endswith("not measured")
    assert len(goal_lines()) == 0


def test_ratios_from_records():
    def seconds(rollout, teacher, training):
        parts = {"rollout": rollout, "teacher": teacher, "forward_backward": training}
        return dict.fromkeys(records.PARTS, 0.0) | parts

    found = [
        record(ms_p50=100.0, ms_per_1000_tokens=200.0, seconds=seconds(0.04, 0.02, 0.04)),
        record("ours-shared-unpacked", ms_p50=160.0, seconds=seconds(0.04, 0.04, 0.08)),
        record("ours-shared-r16", ms_p50=70.0, seconds=seconds(0.01, 0.02, 0.04), steps_per_refresh=16),
        record("trl-sdft", ms_p50=150.0, ms_per_1000_tokens=600.0),
    ]
    text = "\n".join(goals.summary(found))
    assert "vs trl-sdft 1.50 times a step and 3.00 a student token" in text
    assert "ours-shared: packing makes teacher and training together 2.00 times as fast" in text
    assert "ours-shared-r16: rollouts 4.00 times as fast as in ours-shared, up to 15 steps old when used" in text


# Picture, table and a run


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    bars = [
        plot.Bar("a & <b>", "own", {"rollout": 30.0, "refresh": 0.0, "other": 10.0}, 35, 50, "40"),
        plot.Bar("c", "", {"rollout": 100.0}, 90, 110, "100", strong=True),
    ]
    words = bars, "Title & more", "where", "milliseconds"
    with plot.styled() as pyplot:
        figure = plot.stacked(pyplot, *words)
        drawn = sorted((-patch.get_y(), patch.get_x(), patch.get_width()) for patch in figure.axes[0].patches)
        pyplot.close(figure)
    widths = [width for *_, width in drawn]
    assert len(widths) == 3 and widths[0] / widths[1] == pytest.approx(3, rel=0.01)
    assert widths[0] / widths[2] == pytest.approx(0.3, rel=0.01)
    assert plot.draw_stacked(*words, tmp_path / "one.json") == str(tmp_path / "one.svg")
    plot.draw_stacked(*words, tmp_path / "two.json")
    svg = (tmp_path / "one.svg").read_text()
    assert svg == (tmp_path / "two.svg").read_text()
    assert "a &amp; &lt;b&gt;" in svg and "refresh" in svg


def test_table_and_picture_of_records(tmp_path, capsys):
    found = [record(), record("trl-sdft-ce", peak_mib=None), record(model="another", steps=[step(7.0)])]
    (tmp_path / "r.json").write_text(json.dumps(found))
    assert train.main(["--records", str(tmp_path / "r.json")]) == 0
    out = capsys.readouterr().out
    assert (
        "| ours-shared | vLLM, shared | 40.0 | 20.0 | 0 | 0 | 0.5 | 39.5 | 100.0 | 100.0 | 100.0 | 500.0 | 200.0 |"
        in out
    )
    assert "**another**, 0.1 M parameters, H=64 V=1024 K=64, float32, 4 rows a step, cpu, 2 threads" in out
    assert sorted(p.name for p in tmp_path.glob("*.svg")) == ["r-another.svg", "r-qwen3-quick.svg"]
    assert "ours-shared is 1.0 times as fast as trl-sdft-ce" in (tmp_path / "r-qwen3-quick.svg").read_text()


@pytest.mark.slow
def test_the_quick_command(tmp_path, capsys):
    out = tmp_path / "records.json"
    words = ["--quick", "--device", "cpu", "--providers", "ours-hf,ours-hf-unpacked", "--steps", "2"]
    assert train.main([*words, "--out", str(out)]) == 0
    found = {r["provider"]: r for r in json.loads(out.read_text())}
    assert list(found) == ["ours-hf", "ours-hf-unpacked"]
    for r in found.values():
        assert sorted(r) == sorted(FIELDS)
        assert 0 < r["ms_p20"] <= r["ms_p50"] <= r["ms_p80"] and r["peak_mib"] > 50
        assert sum(r["seconds"].values()) > 0 and r["device"] == "cpu, 1 thread"
        assert r["command"] == "python -m bench train " + " ".join(words)
        assert r["parameter_mib"] == pytest.approx(2 * r["student_mib"], rel=1e-3)  # student and teacher
    packed, padded = found["ours-hf"], found["ours-hf-unpacked"]
    assert packed["tokens"]["rollout"] == padded["tokens"]["rollout"] and packed["steps"] == 2
    assert packed["tokens"]["teacher"] == padded["tokens"]["teacher"]
    assert packed["tokens"]["student"] < padded["tokens"]["student"]
    assert packed["padding"]["student"] == packed["padding"]["teacher"] == 0 < padded["padding"]["student"]
    ElementTree.fromstring(out.with_suffix(".svg").read_text())
    for text in (capsys.readouterr().out, out.with_suffix(".md").read_text()):
        assert "| ours-hf | transformers, own |" in text
        assert "goal: ours-hf, packed step >= 1.5 x faster than ours-hf-unpacked: " in text
