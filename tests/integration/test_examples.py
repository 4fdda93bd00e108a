"""The examples, run as their users would, and what each claims: that its trainer computes our loss and nothing else."""

import copy
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raft_kernels.reference import linear_topk_ref, topk_kl_ref

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS = {"trl_distillation": ("trl",), "trl_sft_kd": ("trl",), "liger_model": ("liger_kernel", "triton")}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def kept_bytecode(tmp_path_factory):
    """TRL and transformers are imported by every process here, for most of its time, and longer without bytecode."""
    if not sys.dont_write_bytecode:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("bytecode"))
        patch.setattr(sys, "dont_write_bytecode", False)
        patch.setattr(sys, "pycache_prefix", folder)
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.setenv("PYTHONPYCACHEPREFIX", folder)
        yield


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def require(name: str) -> None:
    for package in NEEDS.get(name, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"examples/{name}.py needs {package}, which is not installed")


def run(name: str) -> str:
    require(name)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, f"examples/{name}.py"],
        check=False,
        cwd=EXAMPLES.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    return done.stdout


@pytest.fixture
def load(monkeypatch):
    """An example as a module."""

    def load(name: str):
        require(name)
        monkeypatch.syspath_prepend(EXAMPLES)
        return importlib.import_module(name)

    return load


def assert_falls(output: str, factor: float) -> None:
    losses = [float(x) for x in re.findall(r"(?:step +\d+  loss |'loss': ')([\d.e-]+)", output)]
    assert len(losses) >= 2 and 0 <= losses[-1] < factor * losses[0], output


def gradient(model) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def reference(student, teacher, ids, attention_mask, k, **options) -> torch.Tensor:
    """Per position but the last: the twin's loss in float64."""
    hidden, teacher_hidden = (
        copy.deepcopy(model).double().eval().model(ids, attention_mask=attention_mask).last_hidden_state[:, :-1]
        for model in (student, teacher)
    )
    top_k = linear_topk_ref(teacher_hidden, teacher.lm_head.weight.double(), k)
    return topk_kl_ref(hidden, student.lm_head.weight.double(), top_k, **options)


def test_plain_loop_runs():
    assert_falls(run("plain_loop"), 0.1)


def test_plain_loop_is_the_reference_and_micro_batches_add_up(load):
    example = load("plain_loop")
    student, teacher = example.pair()
    batches = example.micro_batches()
    length = max(ids.shape[1] for ids, _ in batches)
    ids, mask = (
        torch.cat([torch.nn.functional.pad(batch[i], (0, length - batch[i].shape[1])) for batch in batches])
        for i in (0, 1)
    )
    num_items = mask[:, 1:].sum()
    loss = example.loss_sum(student, ids, mask, example.teacher_top_k(teacher, ids, mask)) / num_items
    loss.backward()
    whole = gradient(student)
    expected = reference(student, teacher, ids, None, example.K, temperature=example.TEMPERATURE)[mask[:, 1:]].mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)

    student.zero_grad()
    for ids, mask in batches:
        top_k = example.teacher_top_k(teacher, ids, mask)
        (example.loss_sum(student, ids, mask, top_k) / num_items).backward()
    torch.testing.assert_close(gradient(student), whole, rtol=1e-4, atol=1e-6)


def test_transformers_trainer_runs():
    assert_falls(run("transformers_trainer"), 0.3)


def test_transformers_trainer_accumulates_to_the_gradient_of_the_whole_batch(load, tmp_path):
    example = load("transformers_trainer")
    # One step of plain SGD at rate 1: the weights lose the gradient.
    options = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    gradients = []
    for rows, micro_batches in ((8, 1), (2, 4), (1, 8)):
        trainer = example.trainer(
            str(tmp_path),
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=micro_batches,
            max_steps=1,
            use_cpu=True,
            **options,
        )
        before = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.train()
        after = trainer.model.parameters()
        gradients.append(torch.cat([(b - a.detach()).flatten() for b, a in zip(before, after, strict=True)]))
    student, teacher = example.pair()
    batch = example.collate(example.rows())
    mask = batch["labels"][:, 1:] != -100
    losses = reference(student, teacher, batch["input_ids"], batch["attention_mask"], 16, temperature=1.5)
    # The log is of the sum over the micro-batches.
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(losses[mask].mean().item(), rel=1e-4)
    for accumulated in gradients[1:]:
        torch.testing.assert_close(accumulated, gradients[0], rtol=1e-4, atol=2e-7)
    # The completions are so unequal that the mean of the rows' means would be another number.
    means = (losses * mask).sum(1) / mask.sum(1)
    assert abs(means.mean() / losses[mask].mean() - 1) > 1e-3


def test_transformers_trainer_evaluates(load, tmp_path):
    example = load("transformers_trainer")
    trainer = example.trainer(str(tmp_path), per_device_eval_batch_size=8, use_cpu=True)
    batch = example.collate(example.rows())
    losses = reference(*example.pair(), batch["input_ids"], batch["attention_mask"], 16, temperature=1.5)
    expected = losses[batch["labels"][:, 1:] != -100].mean().item()
    assert trainer.evaluate(example.rows())["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_trl_distillation_runs_with_the_metrics_of_trl():
    output = run("trl_distillation")
    assert_falls(output, 0.8)
    for metric in ("entropy", "num_tokens", "completions/mean_length"):
        assert f"'{metric}': '" in output


@pytest.fixture
def rollout(load, tmp_path):
    """A trainer of the TRL example, and one micro-batch with completions that its student has sampled."""

    def rollout(**options):
        example = load("trl_distillation")
        trainer = example.trainer(str(tmp_path), use_cpu=True, **options)
        trainer.model.train()
        return example, trainer, trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))

    return rollout


BETAS = {0.0: {"divergence": "forward"}, 1.0: {"divergence": "reverse"}, 0.3: {"divergence": "jsd", "beta": 0.3}}


@pytest.mark.parametrize("beta", BETAS)
def test_trl_distillation_is_the_reference(rollout, beta):
    example, trainer, inputs = rollout(beta=beta, temperature=2.0)
    loss = trainer.compute_loss(trainer.model, inputs)
    ids, mask = (torch.cat([inputs[f"prompt_{x}"], inputs[f"completion_{x}"]], dim=1) for x in ("ids", "mask"))
    options = {"temperature": 2.0, "scale_by_t2": False, **BETAS[beta]}
    losses = reference(trainer.model, trainer.teacher_model, ids, mask, example.distill.k, **options)
    losses = losses[:, inputs["prompt_ids"].shape[1] - 1 :][inputs["completion_mask"] != 0]
    # The items are those of both micro-batches.
    assert len(losses) < inputs["num_items_in_batch"]
    torch.testing.assert_close(loss.double(), losses.sum() / inputs["num_items_in_batch"], rtol=1e-4, atol=0)


@pytest.mark.parametrize("beta", BETAS)
def test_trl_distillation_with_the_whole_vocabulary_is_that_of_trl(rollout, monkeypatch, beta):
    example, trainer, inputs = rollout(beta=beta, temperature=2.0)
    monkeypatch.setattr(example.distill, "k", trainer.model.config.vocab_size)
    results = []
    for way in (example.TopKDistillationTrainer, example.DistillationTrainer):
        trainer.model.zero_grad()
        loss, entropy, count = way._compute_loss(trainer, trainer.model, inputs, inputs["num_items_in_batch"])
        loss.backward()
        results.append((loss.detach(), entropy, count, gradient(trainer.model)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_trl_sft_kd_runs():
    output = run("trl_sft_kd")
    assert_falls(output, 0.5)
    assert "'teacher_mass': '0." in output and "'top1_agreement': '0." in output


def test_trl_sft_kd_is_the_reference(load, tmp_path):
    example = load("trl_sft_kd")
    trainer = example.trainer(str(tmp_path), use_cpu=True)
    batch = next(iter(trainer.get_train_dataloader()))
    mask = batch["labels"][:, 1:] != -100
    assert mask.sum() < batch["attention_mask"][:, 1:].sum(), "prompts are not distilled"
    losses = reference(trainer.model, trainer.teacher, batch["input_ids"], batch["attention_mask"], 16, temperature=1.5)
    for num_items, expected in ((None, losses[mask].mean()), (torch.tensor(100), losses[mask].sum() / 100)):
        loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=num_items)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


def test_liger_model_runs_and_patched_layers_give_the_same_loss():
    output = run("liger_model")
    assert_falls(output, 0.5)
    assert "patched: LigerRMSNorm LigerSwiGLUMLP" in output
    before, after, difference = map(
        float, re.search(r"loss ([\d.]+) before, ([\d.]+) after; gradients differ by ([\d.e+-]+)", output).groups()
    )
    # Both in fp32 on a CPU; a GPU's matrix products may be in TF32.
    tolerance = 1e-2 if torch.cuda.is_available() else 1e-5
    assert after == pytest.approx(before, rel=tolerance) and difference < tolerance
