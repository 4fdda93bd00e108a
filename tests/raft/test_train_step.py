"""Whole optimizer steps against an oracle that shares nothing with the trainer but the rollouts: plain full
logits in float64."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from raft.engines.base import Completion
from raft.prompts import teacher_for_chat
from raft.train.balance import Balance
from tests.golden.training import config, exact, lines, load, rows, trainer

K, T = 32, 1.5


def chat(tokenizer, question):
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]


def completion_logits(model, prompt, completion):
    return model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]


class Oracle:
    """Eqs. 5-12 and SGD, sequence by sequence and over the whole vocabulary."""

    def __init__(self, dtype, lr, top_k=K):
        self.student, self.tokenizer = load(dtype=dtype)
        self.student.double()
        self.teacher = copy.deepcopy(self.student)
        self.lr, self.top_k, self.m, self.s = lr, top_k, [0.0, 0.0], 0

    def losses(self, batch, rollouts):
        cross, tokens, divergences = 0.0, 0, []
        for row in batch:
            prompt = chat(self.tokenizer, row["question"])
            answer = self.tokenizer(row["fused_answer"])["input_ids"] + [self.tokenizer.eos_token_id]
            logits = completion_logits(self.student, prompt, answer)
            cross = cross + cross_entropy(logits, torch.tensor(answer), reduction="sum")
            tokens += len(answer)
        for row, z in rollouts:
            prompt = chat(self.tokenizer, row["question"])
            asked = chat(self.tokenizer, teacher_for_chat(row["question"], row["fused_answer"]))
            with torch.no_grad():
                p = torch.softmax(completion_logits(self.teacher, asked, z) / T, -1)
            q = torch.softmax(completion_logits(self.student, prompt, z) / T, -1)
            ids = p.topk(self.top_k, -1).indices
            p, q = p.gather(-1, ids), q.gather(-1, ids)
            p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
            divergences.append((p * (p / q).log()).sum(-1).mean())
        return (cross, T * T * torch.stack(divergences).sum()), (tokens, len(divergences))

    def step(self, *parts):
        """parts: the rows and rollouts of each forward. Each is weighted by lambda of what was seen up to it."""
        self.s += 1
        found = [self.losses(*part) for part in parts]
        tokens, rollouts = (sum(counts) for counts in zip(*(count for _, count in found), strict=True))
        seen, loss, sft, kl = [0.0] * 4, 0.0, 0.0, 0.0
        for (cross, divergence), counts in found:
            seen = [a + b for a, b in zip(seen, (cross.item(), counts[0], divergence.item(), counts[1]), strict=True)]
            means = seen[0] / seen[1], seen[2] / seen[3]
            after = [0.9 * m + 0.1 * mean for m, mean in zip(self.m, means, strict=True)]
            hat = [m / (1 - 0.9**self.s) for m in after]
            weight = hat[0] / (hat[1] + 1e-8)
            sft, kl = sft + cross / tokens, kl + divergence / rollouts
            loss = loss + cross / tokens + weight * divergence / rollouts
        self.m = after
        gradients = torch.autograd.grad(loss, list(self.student.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(self.student.parameters(), gradients, strict=True):
                parameter -= self.lr * gradient
        return {"loss": loss.item(), "loss_sft": sft.item(), "loss_kl": kl.item(), "lambda": weight}


# 2e-7: the norms of the layers compute in fp32 whatever the dtype, and a shared prompt sums gradients in another order.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 2e-7), (torch.float32, 2e-4)])
@pytest.mark.parametrize(("n", "accumulation"), [(1, 1), (2, 1), (1, 3)])
def test_two_steps_equal_the_oracle(tmp_path, dtype, tolerance, n, accumulation):
    lr = 0.02
    made = trainer(
        tmp_path, dtype=dtype, data=rows(6), optim="sgd", learning_rate=lr,
        lr_scheduler_type="constant", weight_decay=0.0,
        max_grad_norm=0.0, max_steps=2, per_device_train_batch_size=3 // accumulation, rollouts_per_prompt=n, top_k=K,
        log_rollouts=-1, gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    made.train()
    oracle = Oracle(dtype, lr)
    by_prompt = {tuple(chat(oracle.tokenizer, row["question"])): row for row in rows(6)}
    for line, (prompts, sampling, completions) in zip(
        lines(tmp_path / "metrics.jsonl"), made.engine.calls, strict=True
    ):
        asked = [by_prompt[tuple(prompt)] for prompt in prompts]
        assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (1.0, 1.0, 10)
        rollouts = [(row, completion.token_ids) for row, completion in zip(asked, completions, strict=True)]
        size = 3 // accumulation
        expected = oracle.step(
            *((asked[::n][i : i + size], rollouts[i * n : (i + size) * n]) for i in range(0, 3, size))
        )
        assert {name: line[name] for name in expected} == pytest.approx(expected, rel=tolerance)
    for (name, ours), theirs in zip(made.model.named_parameters(), oracle.student.parameters(), strict=True):
        torch.testing.assert_close(
            ours.double(), theirs, rtol=0, atol=tolerance * 0.1, msg=lambda m, name=name: f"{name}: {m}"
        )
    written = lines(tmp_path / "rollouts.jsonl")
    assert len(written) == 2 * 3 * n
    first = [line for line in written if line["step"] == 1]
    assert sum(line["loss_kl"] for line in first) / len(first) == pytest.approx(
        lines(tmp_path / "metrics.jsonl")[0]["loss_kl"], rel=1e-6
    )
    assert all(
        next(r for r in rows() if r["id"] == line["id"])["fused_answer"] in line["teacher_prompt"] for line in first
    )


def gradients(tmp_path, **settings):
    """Gradients of the first step, clipped by nothing, and what was logged."""
    made = trainer(
        tmp_path, dtype=torch.float64, data=rows(4), max_steps=1, optim="sgd", learning_rate=1.0,
        lr_scheduler_type="constant",
        weight_decay=0.0, max_grad_norm=0.0, train_sampling_strategy="sequential", **settings,
    )  # fmt: skip
    before = [p.detach().clone() for p in made.model.parameters()]
    made.train()
    return [b - p.detach() for b, p in zip(before, made.model.parameters(), strict=True)], exact(
        tmp_path / "metrics.jsonl"
    )


@pytest.mark.parametrize("settings", [{"method": "sft"}, {"fixed_lambda": 3.0}])
def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path, settings):
    whole, whole_line = gradients(tmp_path / "a", per_device_train_batch_size=4, **settings)
    parts, parts_line = gradients(
        tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=4, **settings
    )
    assert parts_line[0]["loss"] == pytest.approx(whole_line[0]["loss"], rel=1e-12)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_accumulation_keeps_the_averages_of_the_whole_batch(tmp_path):
    states = []
    for size in (4, 1):
        made = trainer(
            tmp_path / str(size), dtype=torch.float64, data=rows(4), max_steps=1, per_device_train_batch_size=size,
            gradient_accumulation_steps=4 // size, train_sampling_strategy="sequential",
        )  # fmt: skip
        made.train()
        states.append(made.balance.state_dict())
    # lambda itself too: the last micro-batch sees the mean over all of them.
    assert states[0] == pytest.approx(states[1], rel=1e-10)


def test_lambda_carries_no_gradient(tmp_path):
    """With lambda = L_SFT / L_KL the loss is 2 L_SFT, but its gradient must stay g_SFT + lambda * g_KL."""
    both, line = gradients(tmp_path / "raft", per_device_train_batch_size=4)
    sft, _ = gradients(tmp_path / "sft", per_device_train_batch_size=4, method="sft", target="fused")
    fixed, _ = gradients(tmp_path / "fixed", per_device_train_batch_size=4, fixed_lambda=1.0)
    weight = line[0]["lambda"]
    assert line[0]["loss"] == pytest.approx(2 * line[0]["loss_sft"], rel=1e-6)
    for a, b, c in zip(both, sft, fixed, strict=True):
        torch.testing.assert_close(a, b + weight * (c - b), rtol=0, atol=1e-5)  # norms compute in fp32


def empty(completions):
    return [Completion([], "stop") for _ in completions]


def test_a_batch_of_empty_rollouts_trains_on_the_answers_alone(tmp_path):
    made = trainer(tmp_path / "a", engine_edit=empty, max_steps=2, method="raft")
    plain = trainer(tmp_path / "b", max_steps=2, method="sft", target="fused")
    made.train(), plain.train()
    assert made.balance.state_dict() == Balance().state_dict()
    for line, expected in zip(exact(tmp_path / "a/metrics.jsonl"), exact(tmp_path / "b/metrics.jsonl"), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        assert line["loss_kl"] is None and line["rollout_length"] == 0
    for a, b in zip(made.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert lines(tmp_path / "a/rollouts.jsonl") == []


def test_one_empty_rollout_does_not_count_as_a_sequence(tmp_path):
    def some(completions):
        return [Completion([], "stop"), *completions[1:]]

    made = trainer(tmp_path, engine_edit=some, max_steps=1, log_rollouts=-1)
    made.train()
    written = lines(tmp_path / "rollouts.jsonl")
    assert len(written) == 1
    assert lines(tmp_path / "metrics.jsonl")[0]["loss_kl"] == pytest.approx(written[0]["loss_kl"], rel=1e-6)


def test_truncated_rollouts_are_marked_and_can_be_masked(tmp_path):
    def mixed(completions):
        return [Completion(c.token_ids[:4], "stop" if i else "length") for i, c in enumerate(completions)]

    used = trainer(tmp_path / "used", engine_edit=mixed, max_steps=1)
    masked = trainer(tmp_path / "masked", engine_edit=mixed, max_steps=1, mask_truncated=True)
    used.train(), masked.train()
    assert [line["finish_reason"] for line in lines(tmp_path / "used/rollouts.jsonl")] == ["length", "stop"]
    assert [line["finish_reason"] for line in lines(tmp_path / "masked/rollouts.jsonl")] == ["stop"]
    both = [lines(tmp_path / name / "metrics.jsonl")[0] for name in ("used", "masked")]
    assert [line["rollout_truncated"] for line in both] == [0.5, 0.5]
    assert both[0]["loss_kl"] != both[1]["loss_kl"]


def test_sft_equals_the_plain_trainer(tmp_path):
    data = rows(8)
    ours = trainer(
        tmp_path / "ours",
        data=data,
        method="sft",
        target="raw",
        num_train_epochs=2,
        weight_decay=0.01,
        gradient_accumulation_steps=2,
    )
    ours.train()
    model, tokenizer = load()
    features = []
    for row in data:
        prompt, answer = (
            chat(tokenizer, row["question"]),
            tokenizer(row["answer"])["input_ids"] + [tokenizer.eos_token_id],
        )
        features.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    same = config(tmp_path / "theirs", num_train_epochs=2, weight_decay=0.01, gradient_accumulation_steps=2)
    names = (
        "use_cpu",
        "disable_tqdm",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "num_train_epochs",
        "learning_rate",
    )
    args = TrainingArguments(
        str(tmp_path / "theirs"), save_strategy="no", report_to="none", logging_steps=1, weight_decay=0.01,
        **{name: getattr(same, name) for name in names},
    )  # fmt: skip
    plain = Trainer(
        model, args, train_dataset=features, data_collator=DataCollatorForSeq2Seq(tokenizer), processing_class=tokenizer
    )
    plain.train()
    for name in ("loss", "grad_norm", "learning_rate"):
        theirs = [line[name] for line in plain.state.log_history if name in line]
        assert [line[name] for line in lines(tmp_path / "ours/metrics.jsonl")] == pytest.approx(theirs, rel=2e-4)
    for a, b in zip(ours.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=3e-5)


def test_evaluation_touches_neither_averages_nor_rollouts(tmp_path):
    made = trainer(
        tmp_path / "a", eval_dataset=rows(5), eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=2
    )
    quiet = trainer(tmp_path / "b")
    made.train(), quiet.train()
    assert made.balance.state_dict() == quiet.balance.state_dict()
    assert exact(tmp_path / "a/metrics.jsonl") == exact(tmp_path / "b/metrics.jsonl")
    assert len(made.engine.calls) == len(quiet.engine.calls)
    model, tokenizer = made.model, made.processing_class
    expected = []
    for batch in (rows(5)[:2], rows(5)[2:4], rows(5)[4:]):
        total = tokens = 0
        for row in batch:
            prompt, answer = (
                chat(tokenizer, row["question"]),
                tokenizer(row["fused_answer"])["input_ids"] + [tokenizer.eos_token_id],
            )
            with torch.no_grad():
                total += cross_entropy(
                    completion_logits(model, prompt, answer), torch.tensor(answer), reduction="sum"
                ).item()
            tokens += len(answer)
        expected.append((total / tokens, len(batch)))
    mean = sum(loss * size for loss, size in expected) / 5
    assert made.evaluate()["eval_loss"] == pytest.approx(mean, rel=1e-4)


def test_logged_lines_are_means_over_their_steps(tmp_path):
    every = trainer(tmp_path / "a", max_steps=4)
    second = trainer(tmp_path / "b", max_steps=4, logging_steps=2)
    every.train(), second.train()
    one, two = exact(tmp_path / "a/metrics.jsonl"), exact(tmp_path / "b/metrics.jsonl")
    assert [line["step"] for line in two] == [2, 4]
    for name in ("loss", "loss_sft", "loss_kl", "lambda", "rollout_length"):
        assert two[0][name] == pytest.approx((one[0][name] + one[1][name]) / 2, rel=1e-9)
    assert two[0]["tokens"] == one[0]["tokens"] + one[1]["tokens"]
    timed = lines(tmp_path / "a/metrics.jsonl")[0]
    assert set(timed["seconds"]) == {"rollout", "teacher", "forward_backward", "optimizer", "refresh"}
    assert all(timed["seconds"][part] > 0 for part in ("rollout", "teacher", "forward_backward", "optimizer"))
    assert timed["tokens_per_second"] > 0
    history = every.state.log_history[0]
    assert history["lambda"] == one[0]["lambda"] and "seconds_rollout" in history and "loss_kl" in history


def test_teacher_mass_grows_to_one_with_k(tmp_path):
    masses = []
    for k in (8, 936):
        trainer(tmp_path / str(k), max_steps=1, top_k=k).train()
        masses.append(lines(tmp_path / str(k) / "metrics.jsonl")[0]["teacher_mass"])
    assert masses[0] < 0.9 and masses[1] == pytest.approx(1.0, abs=1e-5)
