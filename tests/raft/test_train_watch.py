"""Warnings of a training: each is given once, with the number and a remedy; none while the numbers are in range."""

import pytest
import torch

from raft.report.load import load_run
from raft.report.tables import warning_table
from raft.runs import read_jsonl
from raft.train.config import RAFTConfig
from raft.train.watch import ROLLOUTS, Watch, leaves_script, loops
from tests.golden.training import trainer


def make(tmp_path, known=(), **settings):
    return Watch(RAFTConfig(output_dir=str(tmp_path), **settings), known)


def said(found):
    return [finding["name"] for finding in found]


GOOD = {"teacher_mass": 0.97, "rollout_truncated": 0.3, "lambda": 1.0, "grad_norm": 9.0}


def test_numbers_in_order_are_not_spoken_of(tmp_path):
    made = make(tmp_path)
    assert not any(made.metrics(step, 1, GOOD, 1e9) for step in range(1, 60))


def test_lines_of_sft_have_few_numbers(tmp_path):
    assert not make(tmp_path, method="sft").metrics(1, 1, {"loss_sft": 1.0, "lambda": None, "loss_kl": None})


def test_a_teacher_that_is_too_flat_for_k(tmp_path):
    made = make(tmp_path)
    asked = []

    def k_for(share):
        asked.append(share)
        return 4096

    (finding,) = made.metrics(7, 1, GOOD | {"teacher_mass": 0.68}, k_for=k_for)
    assert (finding["step"], finding["name"]) == (7, "teacher_mass") and asked == [0.95]
    for part in ("512 tokens hold 0.68", "top_k 4,096 would hold 0.95", "tail: bucket"):
        assert part in finding["text"]
    assert not made.metrics(8, 1, GOOD | {"teacher_mass": 0.5}, k_for=k_for) and len(asked) == 1
    assert not make(tmp_path, tail="bucket").metrics(1, 1, GOOD | {"teacher_mass": 0.5})
    assert "a larger top_k" in make(tmp_path).metrics(1, 1, GOOD | {"teacher_mass": 0.5})[0]["text"]


def test_rollouts_that_are_cut(tmp_path):
    line = GOOD | {"rollout_truncated": 0.5}
    made = make(tmp_path, rollout_max_tokens=64, per_device_train_batch_size=8, rollouts_per_prompt=2)
    assert not made.metrics(1, 1, line)  # 16 rollouts are too few to tell
    (finding,) = made.metrics(2, 1, line | {"rollout_truncated": 1.0})
    assert finding["text"].startswith("75% of the rollouts were cut at 64 tokens")
    assert "rollout_max_tokens" in finding["text"]
    assert not make(tmp_path, mask_truncated=True).metrics(1, 50, line)
    made = make(tmp_path, per_device_train_batch_size=8)
    found = [made.metrics(step, 1, GOOD | {"rollout_truncated": float(step % 4 == 0)}) for step in range(1, 41)]
    assert not any(found)  # one step in four: a quarter of them


@pytest.mark.parametrize("value, side", [(30.0, "above 10"), (0.01, "below 0.1")])
def test_a_lambda_far_off_for_long(tmp_path, value, side):
    made, line = make(tmp_path), GOOD | {"lambda": value}
    assert not any(made.metrics(step, 1, line) for step in range(1, 20))
    assert not made.metrics(20, 1, GOOD)  # in order again: the count starts anew
    assert not any(made.metrics(step, 1, line) for step in range(21, 40))
    (finding,) = made.metrics(40, 1, line)
    assert finding["name"] == "lambda" and side in finding["text"] and f"{value:g}" in finding["text"]
    assert not any(made.metrics(step, 1, line) for step in range(41, 90))
    assert not make(tmp_path, fixed_lambda=30.0).metrics(1, 50, line)


def test_a_line_may_be_the_mean_of_many_steps(tmp_path):
    made, line = make(tmp_path), GOOD | {"lambda": 30.0}
    assert not made.metrics(10, 10, line)
    assert said(made.metrics(20, 10, line)) == ["lambda"]


def test_a_gradient_that_is_always_clipped(tmp_path):
    made = make(tmp_path, max_grad_norm=1.0)
    # Every tenth step is logged, and its norm is that of one step.
    found = [made.metrics(10 * step, 10, GOOD | {"grad_norm": 28.0}) for step in range(1, 30)]
    assert [said(f) for f in found if f] == [["grad_norm"]] and found[19]
    assert "max_grad_norm (1)" in found[19][0]["text"] and "now 28" in found[19][0]["text"]
    assert "lambda_max" in found[19][0]["text"]
    made = make(tmp_path, method="sft")
    (finding,) = [f for step in range(20) for f in made.metrics(step, 1, {"grad_norm": 28.0})]
    assert "lambda" not in finding["text"]
    assert not make(tmp_path, max_grad_norm=0.0).metrics(1, 50, GOOD | {"grad_norm": 28.0})


def test_the_bound_of_lambda(tmp_path):
    made = make(tmp_path, lambda_max=3.0)
    assert not made.metrics(1, 1, GOOD, 2.9)
    assert made.metrics(2, 1, GOOD, 3.0)[0]["text"] == "lambda has reached its upper bound of 3 by step 2"


@pytest.mark.parametrize("settings, helps", [({}, "engine_weights: copied"), ({"engine_weights": "copied"}, "")])
def test_an_engine_that_is_another_model(tmp_path, settings, helps):
    made, far = make(tmp_path, **settings), GOOD | {"engine_gap": 0.2}
    assert not made.metrics(1, 1, far) and not made.metrics(2, 1, far)
    assert not made.metrics(3, 1, GOOD)  # a line between two refreshes has no number
    assert not made.metrics(4, 1, GOOD | {"engine_gap": 0.03})  # in order again, as bf16 is: the count starts anew
    assert not made.metrics(5, 1, far) and not made.metrics(6, 1, far)
    (finding,) = made.metrics(7, 1, far)
    assert finding["name"] == "engine_gap"
    assert "0.2 apart" in finding["text"] and "rollout_engine: hf" in finding["text"]
    assert helps in finding["text"] and ("copied" in finding["text"]) == bool(helps)
    assert not any(made.metrics(step, 1, far) for step in range(8, 20))
    made = make(tmp_path)
    assert any(made.metrics(step, 1, GOOD | {"engine_gap": float("nan")}) for step in range(3))


def test_a_balance_of_gradients_is_spoken_of_as_one(tmp_path):
    (finding,) = make(tmp_path, balance="gradient").metrics(20, 20, GOOD | {"lambda": 30.0})
    assert "one of the gradients is nearly 0" in finding["text"]
    (finding,) = make(tmp_path).metrics(20, 20, GOOD | {"lambda": 30.0})
    assert "one of the losses is nearly 0" in finding["text"]


def rollout(text, step=1, question="Where is the bank?", answer="On the river."):
    return {"step": step, "question": question, "answer": answer, "rollout": text}


def test_rollouts_that_repeat_themselves(tmp_path):
    fine, bad = rollout("The bank is on the river, not far from the old mill."), rollout("and so on and on " * 20)
    made = make(tmp_path)
    assert not made.rollouts([bad] * (ROLLOUTS // 4) + [fine] * (3 * ROLLOUTS // 4))  # a quarter is not more than that
    (finding,) = made.rollouts([fine] + [bad] * ROLLOUTS)[:1]
    assert finding["name"] == "loops" and f"of the last {ROLLOUTS} rollouts repeat themselves" in finding["text"]
    assert not made.rollouts([bad] * ROLLOUTS)
    assert not make(tmp_path).rollouts([bad] * (ROLLOUTS - 1))  # too few to tell


def test_rollouts_in_another_script(tmp_path):
    text = "Банк находится на берегу реки."
    assert said(make(tmp_path).rollouts([rollout(text)] * ROLLOUTS)) == ["script"]
    assert not make(tmp_path).rollouts([rollout(text, answer="На берегу.")] * ROLLOUTS)  # asked to translate


@pytest.mark.parametrize(
    "text, found", [("a b c " * 10, True), ("ha ha ha", False), ("one two three four five six seven " * 1, False)]
)
def test_loops(text, found):
    assert loops(text) == found


@pytest.mark.parametrize(
    "question, text, found",
    [
        ("Where is it?", "Там, за рекой, у старой мельницы", True),
        ("Где это?", "Там, за рекой, у старой мельницы", False),
        ("Where is it?", "At Москва, on the river", False),
        # A question without letters asks in no script.
        ("1 + 1 = ?", "Там, за рекой, у старой мельницы", False),
        ("Where?", "там", False),
    ],
)
def test_scripts(question, text, found):
    assert leaves_script(question, text) == found


def test_a_resumed_run_does_not_say_it_again(tmp_path, caplog):
    settings = {"lambda_max": 1e-6, "save_strategy": "steps", "save_steps": 1}
    trainer(tmp_path, max_steps=2, **settings).train()
    assert "lambda has reached its upper bound" in caplog.text
    caplog.clear()
    trainer(tmp_path, max_steps=4, **settings).train(resume_from_checkpoint=True)
    assert "lambda has reached its upper bound" not in caplog.text
    assert [line["name"] for line in read_jsonl(tmp_path / "warnings.jsonl")].count("bound") == 1


def test_k_that_holds_a_share_is_that_of_the_teachers_own_distribution(tmp_path):
    made = trainer(tmp_path, max_steps=1)
    made.train()
    (looked_at, teacher) = (made.recorder.looked_at, made.teacher)
    assert looked_at
    k = made.scoring.k_for(0.5, made.model_wrapped)
    model = teacher.model.model
    held = []
    for s in looked_at:
        ids = torch.tensor([[*s.example.teacher_prompt, *s.completion.token_ids]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(s.example.teacher_prompt) - 1 : -1]
        held.append(torch.softmax(logits.double() / made.args.temperature, -1))
    shares = torch.cat(held).sort(-1, descending=True).values.cumsum(-1).mean(0)
    assert shares[k - 1] >= 0.5 - 1e-6 and shares[k - 2] < 0.5 + 1e-6


def test_a_training_keeps_its_warnings_and_the_report_shows_them(tmp_path, caplog):
    run = tmp_path / "run"
    made = trainer(run / "train", max_steps=2, lambda_max=1e-6)
    made.train()
    lines = read_jsonl(run / "train" / "warnings.jsonl")
    (line,) = [line for line in lines if line["name"] == "bound"]
    assert line["step"] == 1 and line["text"] in caplog.text
    table = warning_table(load_run(run))
    assert line["text"] in [row[2].text for row in table.rows]
