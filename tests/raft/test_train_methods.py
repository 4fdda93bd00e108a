"""What distinguishes each method, and the switches of an ablation, from their settings to their effect."""

import json
import math
import re
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy

from raft.cli import plan_training
from raft.errors import ConfigError
from raft.merging.fapm import kept_entries
from raft.methods import METHODS, fapm
from raft.runs import Run
from raft.settings import Config, load_config
from raft.train.config import check_train
from raft.train.trainer import RAFTTrainer
from raft.train.training import train
from tests.golden.training import Recorder, checkpoint, config, lines, load, rows, trainer


def rewritten_rows(count=8):
    """As refinement leaves them: the third one failed the filter."""
    return [{**row, "rewritten": f"it is {row['answer']}", "kept": i != 2} for i, row in enumerate(rows(count))]


def first_step(tmp_path, **overrides):
    """A trainer after one step on four rows, and the line that it logged."""
    overrides = {"data": rewritten_rows(4), "max_steps": 1, "per_device_train_batch_size": 4} | overrides
    made = trainer(tmp_path, **overrides)
    made.train()
    return made, lines(tmp_path / "metrics.jsonl")[0]


def answers(made):
    return [made.processing_class.decode(e.target, skip_special_tokens=True) for e in made.train_dataset]


def mean_cross_entropy(prompts, texts):
    """Over all answer tokens of the untrained tiny model, from its own full logits."""
    model, tokenizer = load()
    total, tokens = 0.0, 0
    for prompt, text in zip(prompts, texts, strict=True):
        answer = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        total, tokens = (
            total + cross_entropy(logits, torch.tensor(answer), reduction="sum").item(),
            tokens + len(answer),
        )
    return total / tokens


# ---- the methods ----


def test_every_method_cites_where_it_is_from():
    papers = {
        "raft": "2606.00147",
        "sdft": "2402.13669",
        "on_policy": "2306.13649",
        "fapm": "2509.08255",
        "l2sp": "1802.01483",
    }
    assert set(METHODS) == {*papers, "sft"}
    for name, arxiv in papers.items():
        assert f"arXiv {arxiv}" in METHODS[name].citation


def test_raft_is_the_default_and_shows_the_teacher_the_fused_answer(tmp_path):
    made, line = first_step(tmp_path, log_rollouts=-1)
    assert made.args.method == "raft" and answers(made) == [row["fused_answer"] for row in rows(4)]
    fused = {row["id"]: row["fused_answer"] for row in rows(4)}
    written = lines(tmp_path / "rollouts.jsonl")
    assert len(written) == 4
    assert all(f"What is known: {fused[r['id']]}<|im_end|>\n" in r["teacher_prompt"] for r in written)
    # Eq. 12 in the first step: both terms weigh the same, and nothing bounds lambda.
    assert line["lambda"] * line["loss_kl"] == pytest.approx(line["loss_sft"], rel=1e-5) and line["loss_kl"] > 0
    assert made.args.lambda_bound is None


def test_sft_trains_on_the_raw_answers_without_rollouts_or_teacher(tmp_path):
    made, line = first_step(tmp_path, method="sft")
    assert answers(made) == [row["answer"] for row in rows(4)]
    assert made.teacher is None and made.engine.calls == [] and lines(tmp_path / "rollouts.jsonl") == []
    assert (
        line["loss"] == pytest.approx(line["loss_sft"], rel=1e-6) and line["loss_kl"] is None and line["lambda"] is None
    )


def test_sdft_is_sft_on_the_models_own_wording(tmp_path):
    made, line = first_step(tmp_path, method="sdft")
    data = rewritten_rows(4)
    expected = [row["rewritten"] if row["kept"] else row["answer"] for row in data]
    assert answers(made) == expected and expected[2] == data[2]["answer"] != data[2]["rewritten"]
    assert made.teacher is None and made.engine.calls == []
    prompts = [e.prompt for e in made.train_dataset]
    assert line["loss"] == pytest.approx(mean_cross_entropy(prompts, expected), rel=1e-5)
    assert line["loss"] != pytest.approx(mean_cross_entropy(prompts, [row["answer"] for row in data]), rel=1e-3)


def test_the_teacher_of_on_policy_reads_what_the_student_reads(tmp_path):
    made, line = first_step(tmp_path, method="on_policy", log_rollouts=-1)
    assert answers(made) == [row["answer"] for row in rows(4)]
    questions = {row["id"]: row["question"] for row in rows(4)}
    for rollout in lines(tmp_path / "rollouts.jsonl"):
        assert rollout["teacher_prompt"] == (
            f"<|im_start|>user\n{questions[rollout['id']]}<|im_end|>\n<|im_start|>assistant\n"
        )
    # So both give the same distributions before the first update, and lambda stands at its bound at once.
    assert line["loss_kl"] == pytest.approx(0, abs=1e-5) and line["loss_sft"] > 1
    assert line["lambda"] == made.args.lambda_bound == 10.0


def test_without_its_bound_lambda_runs_away_from_a_blind_teacher(tmp_path):
    _, line = first_step(tmp_path, method="on_policy", lambda_max=1e12)
    assert line["lambda"] > 1e4


# ---- fapm: the scores ----


def linear(weight):
    """A model of one matrix."""
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False).to(weight.dtype)
    with torch.no_grad():
        model.weight.copy_(weight)
    return model


def pruned(before, after, sparsity):
    model = linear(before)
    base = fapm.snapshot(model)
    with torch.no_grad():
        model.weight.copy_(after)
    address = model.weight.data_ptr()
    fapm.prune_task_vector(model, base, sparsity)
    assert model.weight.data_ptr() == address and torch.equal(base["weight"], before)
    return model.weight.detach()


def oracle_scores(before, after):
    """S of every entry, in Python floats."""
    mean = sum(abs(w) for w in before) / len(before)
    scores = []
    for w, tuned in zip(before, after, strict=True):
        change = abs(tuned - w)
        scores.append(0.0 if change == 0 else -math.inf if w == 0 else change - mean * (change / abs(w)))
    return scores


def oracle(before, after, sparsity):
    """The pruned tensor, entry by entry."""
    before, after = before.flatten().tolist(), after.flatten().tolist()
    scores = oracle_scores(before, after)
    count = int(len(before) * (1 - Decimal(str(sparsity))))
    kept = set(sorted(range(len(before)), key=lambda i: (-scores[i], i))[:count])
    return [tuned if i in kept else w for i, (w, tuned) in enumerate(zip(before, after, strict=True))]


def test_the_score_marks_down_what_is_large_beside_its_weight():
    """By hand. mean |W_pre| = 0.2 and S = [[0.01, -0.05], [0, -0.01]]; by size the second entry would be first."""
    before = torch.tensor([[0.4, -0.1], [0.2, 0.1]], dtype=torch.float64)
    after = torch.tensor([[0.42, -0.05], [0.17, 0.11]], dtype=torch.float64)
    assert pruned(before, after, 0.75).tolist() == [[0.42, -0.1], [0.2, 0.1]]
    assert pruned(before, after, 0.5).tolist() == [[0.42, -0.1], [0.17, 0.1]]
    assert pruned(before, after, 0.25).tolist() == [[0.42, -0.1], [0.17, 0.11]]


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.97, 1.0])
def test_float64_equals_the_loop(sparsity):
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(37, 29, generator=generator, dtype=torch.float64)
    after = before + 0.1 * torch.randn(37, 29, generator=generator, dtype=torch.float64)
    assert pruned(before, after, sparsity).flatten().tolist() == oracle(before, after, sparsity)


@settings(max_examples=150, deadline=None)
@given(
    entries=st.lists(
        st.tuples(st.sampled_from([-2.0, -1, -0.5, 0, 0.25, 1]), st.integers(-3, 3)), min_size=1, max_size=24
    ),
    sparsity=st.sampled_from([0.0, 0.1, 0.5, 0.75, 0.9, 1.0]),
)
def test_ties_and_zeros_are_settled_by_position(entries, sparsity):
    """Few different values: equal scores, weights of 0, changes of 0, whole tensors of them."""
    before = torch.tensor([[w for w, _ in entries]], dtype=torch.float64)
    after = torch.tensor([[w + step / 8 for w, step in entries]], dtype=torch.float64)
    assert pruned(before, after, sparsity).flatten().tolist() == oracle(before, after, sparsity)


@pytest.mark.parametrize(
    ("entries", "sparsity", "kept"),
    [(10, 0.9, 1), (9, 0.9, 0), (100, 0.71, 29), (30, 0.9, 3), (1_000_003, 0.9, 100_000), (7, 0.0, 7), (7, 1.0, 0)],
)
def test_the_kept_share_is_counted_in_decimals(entries, sparsity, kept):
    assert kept_entries(entries, sparsity) == kept


def test_a_change_of_a_zero_weight_is_kept_last():
    before = torch.tensor([[0.0, 1.0, 0.5, 0.0]])
    after = torch.tensor([[9.0, 1.1, 0.6, 0.0]])
    # S = -inf, 0.0625, 0.025 and 0 for the last, which has no change to keep.
    assert pruned(before, after, 0.25).tolist() == [[0.0, *after[0, 1:].tolist()]]
    assert pruned(before, after, 0.0).tolist() == after.tolist()
    # Nothing but zeros to begin with: the first ones.
    assert pruned(torch.zeros(1, 4), torch.ones(1, 4), 0.5).tolist() == [[1, 1, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_entry_is_one_of_both_to_the_bit_and_each_tensor_keeps_its_share(dtype):
    """The whole tiny model: matrices, tied embeddings, norms and biases alike."""
    model, _ = load("qwen2", dtype)
    base = fapm.snapshot(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            # At least a step of the 8 bits of bf16, so that every entry changes.
            factor = 1 + 0.02 + 0.2 * torch.rand(parameter.shape, generator=generator)
            parameter.copy_(parameter.float() * factor)
    tuned = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    fapm.prune_task_vector(model, base, 0.9)
    assert {p.dim() for p in model.parameters()} == {1, 2} and "lm_head.weight" not in base
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for name, parameter in model.named_parameters():
        changed = parameter != base[name]
        assert torch.equal(parameter, torch.where(changed, tuned[name], base[name])), name
        assert int(changed.sum()) == parameter.numel() // 10, name
        exact = torch.tensor(oracle_scores(*(t.double().flatten().tolist() for t in (base[name], tuned[name]))))
        kept, dropped = exact[changed.flatten()], exact[~changed.flatten()]
        assert kept.min() >= dropped.max() - 1e-6 * exact.abs().max(), name


def test_parameters_that_are_not_trained_need_no_copy():
    model, _ = load()
    model.model.embed_tokens.requires_grad_(False)
    base = fapm.snapshot(model)
    assert "model.embed_tokens.weight" not in base and len(base) == len(list(model.parameters())) - 1


# ---- fapm: in the trainer ----


def state(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def expected_of_fapm(folder, sparsity, **overrides):
    """SFT on the raw answers, pruned by hand."""
    made = trainer(folder, method="sft", **overrides)
    base = fapm.snapshot(made.model)
    made.train()
    fapm.prune_task_vector(made.model, base, sparsity)
    return state(made.model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fapm_is_sft_with_a_pruned_task_vector(tmp_path, dtype):
    common = {"data": rewritten_rows(), "dtype": dtype, "num_train_epochs": 2}
    expected = expected_of_fapm(tmp_path / "sft", 0.9, **common)
    start = state(load(dtype=dtype)[0])
    made = trainer(tmp_path / "fapm", method="fapm", **common)
    made.train()
    assert answers(made) == [row["answer"] for row in rows()]
    assert made.teacher is None and made.engine.calls == []
    for name, parameter in made.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
        changed = int((parameter != start[name]).sum())
        # The small change of a norm may round away in bf16.
        assert (changed > 0 or parameter.dim() == 1) and changed <= parameter.numel() // 10, name
    # An engine that was given sees the pruned weights: once before training, after each step, after the pruning.
    assert made.engine.refreshed == 1 + made.state.global_step + 1


@pytest.mark.parametrize(("sparsity", "like"), [(0.0, "sft"), (1.0, "base")])
def test_the_ends_of_the_sparsity_are_sft_and_the_original_model(tmp_path, sparsity, like):
    made, _ = first_step(tmp_path / "fapm", method="fapm", fapm_sparsity=sparsity)
    other = first_step(tmp_path / "sft", method="sft")[0].model if like == "sft" else load()[0]
    for name, parameter in other.named_parameters():
        assert torch.equal(made.model.get_parameter(name), parameter), name


def test_checkpoints_hold_the_unpruned_weights_and_a_resumed_run_prunes_once(tmp_path):
    """Killed anywhere between the last checkpoint and the saved model, the end is the same."""
    common = {"data": rows(4), "num_train_epochs": 2}
    expected = expected_of_fapm(tmp_path / "sft", 0.9, **common)
    saving = {"method": "fapm", "save_strategy": "epoch", "save_total_limit": None, **common}
    trainer(tmp_path / "run", **saving).train()
    plain = trainer(tmp_path / "plain", method="sft", **common)
    plain.train()
    last = load_file(tmp_path / "run/checkpoint-4/model.safetensors")
    for name, parameter in plain.model.named_parameters():
        assert torch.equal(last[name], parameter), name
    for step in (2, 4):
        resumed = trainer(tmp_path / "run", **saving)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"run/checkpoint-{step}"))
        for name, parameter in resumed.model.named_parameters():
            assert torch.equal(parameter, expected[name]), (step, name)


def run_of(folder, **settings):
    """`raft train` on the tiny model, from its settings."""
    data = folder / "rows.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(4)))
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "num_train_epochs": 1, "learning_rate": 1e-3}
    return (
        Config(model=str(checkpoint()), data=str(data), run=str(folder), train=quiet | {"method": "fapm", **settings}),
        Run(folder),
    )


def test_a_run_of_fapm_saves_the_pruned_model_and_does_so_again_after_a_kill_before_the_save(tmp_path):
    config, run = run_of(tmp_path / "run", save_strategy="epoch", fapm_sparsity=0.5)
    train(plan_training(config, run))
    start = load()[0].state_dict()
    saved = load_file(run.model_dir / "model.safetensors")
    for name, tensor in saved.items():
        assert 0 < int((tensor != start[name]).sum()) <= tensor.numel() // 2, name
    (run.model_dir / "model.safetensors").unlink()
    run.model_dir.rename(Path(tmp_path / "lost"))
    train(plan_training(config, run), resume=True)
    again = load_file(run.model_dir / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in saved.items())


def test_fapm_refuses_adapters_and_shards_in_one_line(tmp_path):
    adapted = get_peft_model(load()[0], LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    refusals = []
    with pytest.raises(ConfigError, match="without LoRA adapters") as caught:
        fapm.check_whole(adapted)
    refusals.append(caught)
    own, _ = load()
    own.add_adapter(LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(ConfigError, match="without LoRA adapters"):
        fapm.check_whole(own)
    made_here = load()[0]
    made_here.config._name_or_path = ""
    with pytest.raises(ConfigError, match="a model that was loaded from a folder, found '.'") as caught:
        fapm.FAPM(config(tmp_path, method="fapm")).begin(made_here, sharded=True)
    refusals.append(caught)
    assert all("\n" not in str(caught.value) for caught in refusals)
    fapm.check_whole(load()[0])


def test_the_trainer_refuses_adapters_before_any_step(tmp_path):
    model, tokenizer = load()
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(ConfigError, match="without LoRA adapters"):
        RAFTTrainer(adapted, config(tmp_path, method="fapm"), rows(), tokenizer, engine=Recorder(model, tokenizer))


def test_where_weights_are_split_the_saved_model_is_pruned_on_disk(tmp_path):
    common = {"data": rows(4), "max_steps": 2}
    expected = expected_of_fapm(tmp_path / "whole", 0.9, **common)
    made = trainer(tmp_path / "split", method="fapm", **common)
    made.model.config._name_or_path = str(checkpoint())
    made.method = fapm.FAPM(made.args)
    made.method.begin(made.model, sharded=True)  # as beside FSDP, which needs GPUs
    made.train()
    assert any(not torch.equal(parameter, expected[name]) for name, parameter in made.model.named_parameters())
    made.save_model(str(tmp_path / "saved"))
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved and all(torch.equal(tensor, expected[name]) for name, tensor in saved.items())
    assert not list((tmp_path / "saved").glob(".merged"))


# ---- l2sp ----


def test_l2sp_is_sft_with_a_pull_towards_the_start(tmp_path):
    common = {"data": rows(4), "max_steps": 3, "max_grad_norm": 0.0}
    plain = trainer(tmp_path / "sft", method="sft", **common)
    plain.train()
    made = trainer(tmp_path / "l2sp", method="l2sp", method_options={"alpha": 50.0}, **common)
    made.train()
    first, sft = (lines(tmp_path / name / "metrics.jsonl") for name in ("l2sp", "sft"))
    assert first[0]["loss"] == sft[0]["loss"]  # nothing has moved yet
    assert first[2]["loss"] > first[2]["loss_sft"] == pytest.approx(first[2]["loss_sft"])
    start = state(load()[0])

    def moved(model):
        return sum(float((p.detach() - start[name]).square().sum()) for name, p in model.named_parameters())

    assert moved(made.model) < 0.9 * moved(plain.model)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_penalty_of_l2sp_counts_once_a_step(tmp_path, accumulation):
    made = trainer(
        tmp_path, method="l2sp", method_options={"alpha": 0.5}, data=rows(4), max_steps=1,
        per_device_train_batch_size=4 // accumulation, gradient_accumulation_steps=accumulation, weight_decay=0.0,
    )  # fmt: skip
    start = state(made.model)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter += 0.01
    made.train()
    line = lines(tmp_path / "metrics.jsonl")[0]
    expected = 0.25 * sum(0.01**2 * tensor.numel() for tensor in start.values())
    assert line["loss"] - line["loss_sft"] == pytest.approx(expected, rel=1e-3)
    assert line["penalty"] == pytest.approx(expected, rel=1e-4)


def test_l2sp_holds_adapters_where_they_started(tmp_path):
    model, tokenizer = load()
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    settings = config(tmp_path, method="l2sp", method_options={"alpha": 10.0}, max_steps=3)
    made = RAFTTrainer(adapted, settings, rows(4), tokenizer, engine=Recorder(model, tokenizer))
    made.train()
    assert lines(tmp_path / "metrics.jsonl")[-1]["penalty"] > 0


@pytest.mark.parametrize("sharding", [{"fsdp": "full_shard"}, {"deepspeed": {"zero_optimization": {"stage": 3}}}])
def test_l2sp_is_refused_beside_shards_before_any_work(tmp_path, sharding):
    with pytest.raises(ConfigError, match="method: expected no fsdp or deepspeed beside 'l2sp'"):
        config(tmp_path, method="l2sp", **sharding)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"push_to_hub": True}, "expected push_to_hub false"),
        ({"fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}, "FULL_STATE_DICT"),
    ],
)
def test_fapm_beside_shards_is_refused_where_the_saved_model_could_not_be_pruned(tmp_path, settings, message):
    args = config(tmp_path, method="fapm")
    for name, value in settings.items():
        setattr(args, name, value)
    model = load()[0]
    model.config._name_or_path = str(checkpoint())
    with pytest.raises(ConfigError, match=message):
        fapm.FAPM(args).begin(model, sharded=True)


def test_saving_takes_no_other_rank_unless_the_model_is_pruned_on_disk(tmp_path, monkeypatch):
    """`if trainer.is_world_process_zero(): trainer.save_model(folder)` must not wait for the others."""
    made, _ = first_step(tmp_path, method="sft")
    monkeypatch.setattr(made.accelerator, "wait_for_everyone", lambda: pytest.fail("waited for the other ranks"))
    made.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("l2sp", {"beta": 1}, r"method_options: expected options of 'l2sp' \(alpha\), found 'beta'"),
        ("sft", {"alpha": 1}, r"method_options: expected options of 'sft' \(none\), found 'alpha'"),
        ("l2sp", {"alpha": -1}, "method_options: alpha: expected a number of at least 0, found -1"),
    ],
)
def test_options_of_a_method_are_checked(tmp_path, method, options, message):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, method=method, method_options=options)


# ---- the switches of an ablation ----


def arguments(tmp_path, *overrides):
    """Settings as `raft train` reads them from its command line."""
    return check_train(load_config(None, [*overrides, f"run={tmp_path}", "train.use_cpu=true"], section="train"))


def test_the_readme_lists_every_method_and_switch_with_its_default(tmp_path):
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(\w+)` \| .*?(?:abs/([\d.]+)\))? \|$", text, re.MULTILINE)
    cited = {name: re.search(r"arXiv ([\d.]+)", method.citation) for name, method in METHODS.items()}
    assert dict(table) == {name: arxiv[1] if arxiv else "" for name, arxiv in cited.items()}
    defaults = load_config(None, [f"run={tmp_path}"])
    found = {"train": arguments(tmp_path), "refine": defaults.refine}
    switches = re.findall(r"^\| [^|]+ \| `(train|refine)\.(\w+)`[^|]* \| ([^|]+) \|", text, re.MULTILINE)
    assert len(switches) == 17
    for section, name, default in switches:
        value = getattr(found[section], name)
        expected = {"the method's": "None", "none": "None"}.get(default, default.strip("`"))
        assert str(value) == expected, name


def test_a_switch_moves_one_part_of_a_preset(tmp_path):
    blind = arguments(tmp_path, "teacher_context=none")
    assert (blind.sees_answer, blind.answer_target, blind.lambda_bound) == (False, "fused", 10.0)
    assert arguments(tmp_path, "teacher_context=none", "lambda_max=3").lambda_bound == 3.0
    assert arguments(tmp_path, "teacher_context=none", "balance=fixed").lambda_bound is None
    seeing = arguments(tmp_path, "method=on_policy", "teacher_context=answer")
    assert (seeing.sees_answer, seeing.answer_target, seeing.lambda_bound) == (True, "raw", None)
    assert arguments(tmp_path, "method=on_policy").sees_answer is False
    for target in ("raw", "rewritten", "fused"):
        assert arguments(tmp_path, f"target={target}").answer_target == target
    assert arguments(tmp_path, "method=sft", "teacher_context=none").lambda_bound is None


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ("ema", None)),
        (["balance=ema"], ("ema", None)),
        (["balance=fixed"], ("fixed", 1.0)),
        (["balance=fixed", "fixed_lambda=0.1"], ("fixed", 0.1)),
        (["fixed_lambda=3"], ("fixed", 3.0)),
        (["fixed_lambda=0"], ("fixed", 0.0)),
    ],
)
def test_balance_is_moving_averages_or_a_constant(tmp_path, overrides, expected):
    args = arguments(tmp_path, *overrides)
    assert (args.balance, args.fixed_lambda) == expected
    again = type(args)(output_dir=str(tmp_path), use_cpu=True, balance=args.balance, fixed_lambda=args.fixed_lambda)
    assert (again.balance, again.fixed_lambda) == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=fapn"], "train.method: expected one of fapm, l2sp, on_policy, raft, sdft, sft, found 'fapn'"),
        (["target=original"], "train.target: expected one of fused, raw, rewritten or null, found 'original'"),
        (["teacher_context=no"], "train.teacher_context: expected one of answer, none or null, found 'no'"),
        (["teacher_context=false"], "train.teacher_context: expected one of answer, none or null, found False"),
        (["balance=off"], "train.balance: expected one of ema, gradient, fixed or null, found 'off'"),
        (["balance=ema", "fixed_lambda=1"], "train.fixed_lambda: expected none beside balance=ema, found 1.0"),
        (
            ["balance=fixed", "lambda_max=2"],
            "train.fixed_lambda: expected no lambda_min or lambda_max beside it, found",
        ),
        (["balance=fixed", "fixed_lambda=-1"], "train.fixed_lambda: expected a number of at least 0 or null, found -1"),
        (["teacher_context=none", "lambda_min=20"], "train.lambda_min: expected at most lambda_max=10.0, found 20.0"),
        (["fapm_sparsity=1.5"], "train.fapm_sparsity: expected a number from 0 to 1, found 1.5"),
        (["fapm_sparsity=90%"], "train.fapm_sparsity: expected a number from 0 to 1, found '90%'"),
        (["jsd_beta=1"], "train.jsd_beta: expected a number above 0 and below 1, found 1"),
        (["tail=drop"], "train.tail: expected one of renormalize, bucket, found 'drop'"),
        (["divergence=kl"], "train.divergence: expected one of forward, reverse, jsd, found 'kl'"),
        (["top_k=half"], "train.top_k: expected a whole number of at least 1, found 'half'"),
        (["teacher_contex=none"], "unknown setting 'train.teacher_contex', did you mean 'train.teacher_context'?"),
    ],
)
def test_a_bad_switch_is_one_line(tmp_path, overrides, message):
    with pytest.raises(ConfigError) as caught:
        arguments(tmp_path, *overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_blind_teacher_of_fused_answers_and_a_seeing_one_of_raw_answers(tmp_path):
    blind, line = first_step(tmp_path / "blind", teacher_context="none", log_rollouts=-1)
    assert answers(blind) == [row["fused_answer"] for row in rows(4)]
    assert all("known" not in r["teacher_prompt"] for r in lines(tmp_path / "blind/rollouts.jsonl"))
    assert line["loss_kl"] == pytest.approx(0, abs=1e-5) and line["lambda"] == 10.0
    _, line = first_step(tmp_path / "seeing", method="on_policy", teacher_context="answer", log_rollouts=-1)
    raw = {row["id"]: row["answer"] for row in rows(4)}
    written = lines(tmp_path / "seeing/rollouts.jsonl")
    assert all(f"What is known: {raw[r['id']]}<|im_end|>\n" in r["teacher_prompt"] for r in written)
    assert line["lambda"] * line["loss_kl"] == pytest.approx(line["loss_sft"], rel=1e-5)


@pytest.mark.parametrize(
    "switch",
    [
        {"top_k": 8},
        {"temperature": 1.0},
        {"divergence": "reverse"},
        {"divergence": "jsd"},
        {"divergence": "jsd", "jsd_beta": 0.9},
        {"tail": "bucket"},
    ],
    ids=lambda switch: ",".join(f"{name}={value}" for name, value in switch.items()),
)
def test_each_switch_of_the_divergence_reaches_the_loss(tmp_path, switch):
    """All else, rollouts included, is that of the default or, for jsd's beta, of jsd."""
    reference = {"divergence": "jsd"} if "jsd_beta" in switch else {}
    _, usual = first_step(tmp_path / "usual", **reference)
    _, line = first_step(tmp_path / "switched", **switch)
    assert line["loss_sft"] == usual["loss_sft"] and line["rollout_length"] == usual["rollout_length"]
    # T^2 keeps the loss at nearly the same size for another T, so the difference may be small.
    assert line["loss_kl"] > 0 and line["loss_kl"] != pytest.approx(usual["loss_kl"], rel=1e-4)


def test_the_switches_of_the_balance_reach_lambda(tmp_path):
    _, line = first_step(tmp_path / "fixed", balance="fixed")
    assert line["lambda"] == 1.0 and line["loss"] == pytest.approx(line["loss_sft"] + line["loss_kl"], rel=1e-6)
    weights = []
    for beta in (0.0, 0.99):
        first_step(tmp_path / str(beta), ema_beta=beta, max_steps=4)
        found = lines(tmp_path / str(beta) / "metrics.jsonl")
        weights.append([line["lambda"] for line in found])
        if beta == 0:  # no memory: every step is balanced by its own losses
            assert weights[-1] == pytest.approx([line["loss_sft"] / line["loss_kl"] for line in found], rel=1e-5)
    assert weights[0][0] == pytest.approx(weights[1][0], rel=1e-6) and weights[0][-1] != weights[1][-1]
