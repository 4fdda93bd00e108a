"""balance: gradient, and the norms of both parts, against float64 gradients that share nothing with the trainer but
rollouts."""

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from raft.engines.base import Completion
from raft.errors import ConfigError, RunFolderError
from raft.models.language_model import OutputHead
from raft.prompts import teacher_for_chat
from raft.train.balance import Balance, mean_norm
from raft.train.config import RAFTConfig
from raft.train.parts import ahead
from raft.train.trainer import RAFTTrainer
from tests.golden.training import Recorder, config, exact, lines, load, rows, trainer

K, T = 32, 1.5
PARTS = ("gradient_sft", "gradient_kl")


def chat(tokenizer, question):
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)[
        "input_ids"
    ]


class Oracle:
    """The averages of the gradients' norms, Eqs. 5-10 and SGD, sequence by sequence and over the whole vocabulary."""

    def __init__(self, dtype, lr):
        self.student, self.tokenizer = load(dtype=dtype)
        self.student.double()
        self.teacher = copy.deepcopy(self.student)
        self.lr, self.m, self.s = lr, [0.0, 0.0], 0

    def states(self, model, prompt, completion):
        """Hidden states that predict the completion, with a gradient of their own."""
        hidden = model.model(input_ids=torch.tensor([prompt + completion])).last_hidden_state
        return hidden[0, len(prompt) - 1 : -1]

    def forward(self, batch, rollouts):
        """Both losses of one forward as sums, the squared norms of their gradients, and the counts."""
        cross, kl, states, counts = 0.0, 0.0, ([], []), (0, len(rollouts))
        head = self.student.lm_head
        for row in batch:
            answer = self.tokenizer(row["fused_answer"])["input_ids"] + [self.tokenizer.eos_token_id]
            states[0].append(self.states(self.student, chat(self.tokenizer, row["question"]), answer))
            cross = cross + cross_entropy(head(states[0][-1]), torch.tensor(answer), reduction="sum")
            counts = (counts[0] + len(answer), counts[1])
        for row, z in rollouts:
            asked = chat(self.tokenizer, teacher_for_chat(row["question"], row["fused_answer"]))
            with torch.no_grad():
                p = torch.softmax(self.teacher.lm_head(self.states(self.teacher, asked, z)) / T, -1)
            states[1].append(self.states(self.student, chat(self.tokenizer, row["question"]), z))
            q = torch.softmax(head(states[1][-1]) / T, -1)
            ids = p.topk(K, -1).indices
            p, q = p.gather(-1, ids), q.gather(-1, ids)
            p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
            kl = kl + T * T * (p * (p / q).log()).sum(-1).mean()
        squares = [
            sum(g.square().sum().item() for g in torch.autograd.grad(loss, of, retain_graph=True))
            for loss, of in zip((cross, kl), states, strict=True)
        ]
        return (cross, kl), squares, counts

    def step(self, *parts):
        """parts: the rows and rollouts of each forward."""
        self.s += 1
        found = [self.forward(*part) for part in parts]
        whole = [sum(counts[k] for _, _, counts in found) for k in range(2)]
        loss, seen, squares_seen, of_part, sums = 0.0, [0, 0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]
        for losses, squares, counts in found:
            after = []
            for k in range(2):
                seen[k] += counts[k]
                squares_seen[k] += squares[k]
                norm = math.sqrt(squares_seen[k] * whole[k] / seen[k]) / whole[k]
                after.append(0.9 * self.m[k] + 0.1 * norm)
                sums[k] += losses[k].item() / whole[k]
            weight = after[0] / (1 - 0.9**self.s) / (after[1] / (1 - 0.9**self.s) + 1e-8)
            loss = loss + losses[0] / whole[0] + weight * losses[1] / whole[1]
            of_part[0] += squares[0] / whole[0] ** 2
            of_part[1] += (weight / whole[1]) ** 2 * squares[1]
        self.m = after
        gradients = torch.autograd.grad(loss, list(self.student.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(self.student.parameters(), gradients, strict=True):
                parameter -= self.lr * gradient
        numbers = {"loss": loss.item(), "loss_sft": sums[0], "loss_kl": sums[1], "lambda": weight}
        return numbers | dict(zip(PARTS, map(math.sqrt, of_part), strict=True))


# 2e-7: the norms of the layers compute in fp32 whatever the dtype, and a shared prompt sums gradients in another order.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 2e-7), (torch.float32, 2e-4)])
@pytest.mark.parametrize(("n", "accumulation"), [(1, 1), (2, 1), (1, 3)])
def test_three_steps_equal_the_oracle(tmp_path, dtype, tolerance, n, accumulation):
    lr = 0.02
    made = trainer(
        tmp_path, dtype=dtype, data=rows(6), optim="sgd", learning_rate=lr, lr_scheduler_type="constant",
        weight_decay=0.0, max_grad_norm=0.0, max_steps=3, rollouts_per_prompt=n, top_k=K,
        per_device_train_batch_size=3 // accumulation, balance="gradient", gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    made.train()
    oracle = Oracle(dtype, lr)
    by_prompt = {tuple(chat(oracle.tokenizer, row["question"])): row for row in rows(6)}
    written = lines(tmp_path / "metrics.jsonl")
    for line, (prompts, _, completions) in zip(written, made.engine.calls, strict=True):
        asked = [by_prompt[tuple(prompt)] for prompt in prompts]
        rollouts = [(row, completion.token_ids) for row, completion in zip(asked, completions, strict=True)]
        size = 3 // accumulation
        expected = oracle.step(
            *((asked[::n][i : i + size], rollouts[i * n : (i + size) * n]) for i in range(0, 3, size))
        )
        assert {name: line[name] for name in expected} == pytest.approx(expected, rel=tolerance)
    state = made.balance.state_dict()
    assert (state["sft"], state["kl"], state["steps"]) == (*(pytest.approx(m, rel=tolerance) for m in oracle.m), 3)
    assert made.state.log_history[0]["gradient_kl"] == written[0]["gradient_kl"]
    for (name, ours), theirs in zip(made.model.named_parameters(), oracle.student.parameters(), strict=True):
        torch.testing.assert_close(
            ours.double(), theirs, rtol=0, atol=tolerance * 0.1, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_the_first_step_makes_both_parts_pull_equally(tmp_path):
    trainer(tmp_path, max_steps=1, balance="gradient").train()
    (line,) = lines(tmp_path / "metrics.jsonl")
    assert line["gradient_kl"] == pytest.approx(line["gradient_sft"], rel=1e-5)
    assert line["lambda"] * line["loss_kl"] != pytest.approx(line["loss_sft"], rel=0.1)  # what ema would do


@pytest.mark.parametrize("n", [1, 2])
def test_forwards_of_a_step_have_the_norms_of_one_large_one(tmp_path, n):
    splits = {
        "whole": {"per_device_train_batch_size": 4},
        "rows": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
        "tokens": {"per_device_train_batch_size": 4, "max_tokens_per_micro_batch": 100 + 60 * n},
    }
    # A question that comes twice is in a forward once, if both rows are in the same.
    data = [*rows(3), rows(3)[0] | {"id": "again", "fused_answer": "it is grey"}]
    states, written = {}, {}
    for name, settings in splits.items():
        made = trainer(
            tmp_path / name, dtype=torch.float64, data=data, max_steps=1, balance="gradient", rollouts_per_prompt=n,
            train_sampling_strategy="sequential", **settings,
        )  # fmt: skip
        made.train()
        states[name] = made.balance.state_dict()
        written[name] = exact(tmp_path / name / "metrics.jsonl")[0]["gradient_sft"]
    for name in ("rows", "tokens"):
        assert states[name] == pytest.approx(states["whole"], rel=2e-7)
        assert written[name] == pytest.approx(written["whole"], rel=2e-7)


def lora(model):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    return peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))


def frozen_head(model):
    model.lm_head.weight.requires_grad_(False)
    return model


def frozen_decoder(model):
    model.model.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("family", "change", "settings"),
    [
        ("qwen3", None, {}),  # embedding and head are one
        ("llama", None, {"gradient_checkpointing": True, "gradient_accumulation_steps": 2}),
        ("qwen3", None, {"divergence": "reverse", "tail": "bucket"}),
        ("llama", frozen_head, {}),
        ("llama", frozen_decoder, {}),
        ("qwen3", lora, {}),
        ("qwen3", None, {"method": "sft"}),
    ],
)
def test_measuring_leaves_the_gradients_as_they_are(tmp_path, family, change, settings):
    """One step of plain gradient descent, once with gradients made in the forward pass and once with torch's."""
    after = []
    for every in (0, 1):
        model, tokenizer = load(family, torch.float64)
        model = change(model) if change else model
        weight = {} if "method" in settings else {"fixed_lambda": 3.0}
        args = config(
            tmp_path / str(every), max_steps=1, optim="sgd", learning_rate=1.0, lr_scheduler_type="constant",
            weight_decay=0.0, max_grad_norm=0.0, log_gradient_parts=every, **weight, **settings,
        )  # fmt: skip
        RAFTTrainer(model, args, rows(4), processing_class=tokenizer, engine=Recorder(model, tokenizer)).train()
        after.append(dict(model.named_parameters()))
        (line,) = lines(tmp_path / str(every) / "metrics.jsonl")
        assert ("gradient_sft" in line) == bool(every)
    begun = dict((change or (lambda m: m))(load(family, torch.float64)[0]).named_parameters())
    moved = {name for name in begun if not torch.equal(begun[name], after[0][name])}
    assert moved == {name for name, p in begun.items() if p.requires_grad}
    for name, parameter in after[0].items():
        torch.testing.assert_close(parameter, after[1][name], rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def test_a_loss_made_ahead_is_the_loss(tmp_path):
    """Value, squared norm and all three gradients, with what a head can have, and weighted by more than one number."""
    torch.manual_seed(0)
    states = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(11, dtype=torch.float64, requires_grad=True)
    head, labels = OutputHead(weight, bias, 0.5, 4.0), torch.arange(7)

    def loss(h, w):
        return cross_entropy(w.logits(h), labels, reduction="none")

    inputs = (states, weight, bias)
    by_hand = loss(states, head)
    expected = torch.autograd.grad(2.5 * by_hand.sum(), inputs, retain_graph=True)
    (at_states,) = torch.autograd.grad(by_hand.sum(), states)
    found = ahead(loss, states, head)
    torch.testing.assert_close(found.values, by_hand.detach())
    torch.testing.assert_close(found.square, at_states.square().sum())
    assert not found.values.requires_grad and not found.square.requires_grad
    (2.5 * found.total).backward()
    for x, gradient in zip(inputs, expected, strict=True):
        torch.testing.assert_close(x.grad, gradient)
    with pytest.raises(RuntimeError, match="one backward pass only"):
        found.total.backward()


def test_half_precision_gradients_are_scaled_by_the_very_factor():
    """bf16 has 1.0 and 1.0078 and nothing between: a factor of 1.0039 must round each product, not be rounded
    itself."""
    states = torch.ones(5000, 2, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.full((3, 2), 1.0, dtype=torch.bfloat16)
    slopes = torch.linspace(1, 2, 10000).view(5000, 2).bfloat16()
    found = ahead(lambda h, w: (h * slopes).float().sum(-1), states, OutputHead(weight, None, 1.0, None))
    factor = torch.tensor(1.0039, dtype=torch.float32)
    (factor * found.total).backward()
    assert torch.equal(states.grad, (slopes.float() * factor).bfloat16())
    assert not torch.equal(states.grad, slopes)


def empty(completions):
    return [Completion([], "stop") for _ in completions]


def test_steps_without_rollouts_leave_lambda_and_averages_alone(tmp_path):
    drawn = iter([False, True, False, True])

    def some(completions):
        return completions if next(drawn) else empty(completions)

    made = trainer(tmp_path, engine_edit=some, max_steps=4, balance="gradient")
    made.train()
    written = exact(tmp_path / "metrics.jsonl")
    assert made.balance.state_dict()["steps"] == 2
    assert [line["gradient_kl"] is None for line in written] == [True, False, True, False]
    assert written[0]["lambda"] == 0 and written[2]["lambda"] == written[1]["lambda"] > 0
    assert all(line["gradient_sft"] > 0 and line["loss"] >= line["loss_sft"] for line in written)


def test_numbers_that_are_not_finite_leave_the_averages_alone():
    balance = Balance()
    balance.weigh(
        mean_norm(torch.tensor(4.0), torch.tensor(1.0), 1), mean_norm(torch.tensor(1.0), torch.tensor(1.0), 1)
    )
    balance.commit()
    before = balance.state_dict()
    for square, seen in ((math.nan, 3.0), (math.inf, 3.0), (0.0, 0.0)):
        norm = mean_norm(torch.tensor(square), torch.tensor(seen), 3)
        assert balance.weigh(torch.tensor(1.0), norm).item() == before["lambda"] == pytest.approx(2.0)
        balance.commit()
    assert balance.state_dict() == before


def test_a_teacher_that_sees_no_answer_has_a_bound(tmp_path):
    """At the start it is the student: L_KL has no gradient at all, and lambda would be infinite."""
    trainer(tmp_path, max_steps=1, method="on_policy", balance="gradient").train()
    (line,) = lines(tmp_path / "metrics.jsonl")
    assert line["lambda"] == 10.0 and line["gradient_kl"] < 1e-3 * line["gradient_sft"]


def test_parts_are_logged_every_so_many_steps(tmp_path):
    trainer(tmp_path / "a", max_steps=4, log_gradient_parts=2).train()
    trainer(tmp_path / "b", max_steps=4, log_gradient_parts=1, logging_steps=4).train()
    trainer(tmp_path / "c", max_steps=4, log_gradient_parts=1).train()
    some, mean, every = (exact(tmp_path / name / "metrics.jsonl") for name in "abc")
    assert [line["step"] for line in some if "gradient_sft" in line] == [2, 4]
    assert all(("gradient_kl" in line) == ("gradient_sft" in line) for line in some)
    for name in PARTS:
        assert some[1][name] == pytest.approx(every[1][name], rel=1e-4)
        root = math.sqrt(sum(line[name] ** 2 for line in every) / 4)
        assert mean[0][name] == pytest.approx(root, rel=1e-4)
    made = trainer(tmp_path / "d", max_steps=1, method="sft", log_gradient_parts=1)
    made.train()
    assert lines(tmp_path / "d/metrics.jsonl")[0]["gradient_kl"] is None
    assert "gradient_sft" in made.state.log_history[0] and "gradient_kl" not in made.state.log_history[0]


def test_a_checkpoint_of_other_averages_is_refused(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1}
    trainer(tmp_path, max_steps=1, **saving).train()
    with pytest.raises(RunFolderError, match="averages of losses, not of gradients as balance: gradient does"):
        trainer(tmp_path, max_steps=2, balance="gradient", **saving).train(resume_from_checkpoint=True)
    trainer(tmp_path, max_steps=2, fixed_lambda=1.0, **saving).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"balance": "grad"}, r"balance: expected one of ema, gradient, fixed or null, found 'grad'"),
        (
            {"balance": "gradient", "fixed_lambda": 1.0},
            r"fixed_lambda: expected none beside balance=gradient, found 1.0",
        ),
        ({"balance": "gradient", "lambda_min": 3.0, "lambda_max": 2.0}, r"lambda_min: expected at most lambda_max=2.0"),
        ({"balance": "gradient", "lambda_min": 11.0, "method": "on_policy"}, r"lambda_min: .* lambda_max=10.0"),
        ({"log_gradient_parts": -1}, r"log_gradient_parts: expected a whole number of at least 0, found -1"),
        ({"log_gradient_parts": 2.5}, r"log_gradient_parts: .* found 2.5"),
    ],
)
def test_wrong_settings_end_in_one_line(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        RAFTConfig(output_dir="out", use_cpu=True, **settings)
    assert "\n" not in str(caught.value)


def test_ema_stays_the_default():
    assert RAFTConfig("out", use_cpu=True).balance == "ema"
    assert not RAFTConfig("out", use_cpu=True, method="sft", balance="gradient").balances_gradients
