"""TRL's on-policy trainers on the same rows, as they come and with the cross-entropy of the answers added; and its
SFTTrainer.

Their work differs from our step's. DistillationTrainer's teacher sees the question only, and its divergence is over the
full vocabulary. SDFTTrainer materialises the logits of student and teacher and cuts them to the student's top-K.
Neither has a loss on the answers, so `-ce` adds it as a user of TRL would, with a forward of its own on a padded batch.
"""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from bench.common.failures import reason
from bench.steps.probes import Stopwatch, observe, within
from bench.steps.setup import SEED, Setup, shared_settings, vllm_installed
from bench.steps.work import Work, make_model, make_rows, make_tokenizer
from raft.prompts import TEACHER_PROMPTS
from raft.train.config import RAFTConfig


def make_trl(kind: str, with_ce: bool, work: Work, device: str, folder: Path, steps: int) -> Setup:
    """kind: "distillation" | "sdft"."""
    model, tokenizer = make_model(work, device, SEED), make_tokenizer(work)
    # SDFT loads its teacher, and a colocated vLLM its weights, from the path in the configuration of the model.
    checkpoint = folder / "model"
    model.save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)
    model.config._name_or_path = str(checkpoint)
    settings = {
        **shared_settings(work, device, folder, steps),
        "max_completion_length": work.rollout_most,
        "temperature": 1.0,
    }
    build = _distillation if kind == "distillation" else _sdft
    generation = "transformers"
    if device == "cuda" and vllm_installed():
        colocated = {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": work.max_length}
        try:
            trainer = build(model, tokenizer, work, settings | colocated, with_ce)
            generation = "vLLM"
        except Exception as error:  # noqa: BLE001  # however it fails, TRL can generate with transformers
            print(f"TRL's colocated vLLM does not run here: {reason(error)}", flush=True)
    if generation == "transformers":
        trainer = build(model, tokenizer, work, settings, with_ce)
    loss = "divergence over the full vocabulary" if kind == "distillation" else f"JSD on the student's top-{work.k}"
    sees = "the question only" if kind == "distillation" else "the answer"
    extra = " + CE on answers in a forward of its own" if with_ce else ", no CE"
    setup = _setup(trainer, model, device, f"{loss}{extra}, teacher sees {sees}; padded")
    if generation == "vLLM":
        setup.generation, setup.weights = "vLLM", "copied"
    _watch_rollouts(setup)
    _watch_teacher(setup)
    return setup


def make_sft(work: Work, device: str, folder: Path, steps: int) -> Setup:
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = make_model(work, device, SEED), make_tokenizer(work)
    args = SFTConfig(**shared_settings(work, device, folder, steps), max_length=work.max_length)
    dataset = _dataset(work, prompt=_prompt, completion=lambda row: [{"role": "assistant", "content": row["answer"]}])
    trainer = SFTTrainer(model, args, train_dataset=dataset, processing_class=tokenizer)
    setup = _setup(trainer, model, device, "CE on answers; padded")
    setup.generation = "none"
    return setup


def _setup(trainer: Any, model: Any, device: str, objective: str) -> Setup:
    """Watches the student and the optimizer, which all trainers have."""
    watch, last = Stopwatch(device), dict[str, float]()
    setup = Setup(trainer, model, watch, lambda: last, objective)
    within(trainer, "training_step", partial(watch.part, "forward_backward"))
    setup.tokens.watch(model.get_decoder(), "student")
    trainer.add_callback(Optimizer(watch, last))
    return setup


def _dataset(work: Work, **fields: Callable[[dict[str, str]], Any]) -> Any:
    from datasets import Dataset

    return Dataset.from_list([{name: of(row) for name, of in fields.items()} for row in make_rows(work, SEED)])


def _prompt(row: dict[str, str]) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["question"]}]


def _distillation(model: Any, tokenizer: Any, work: Work, settings: dict[str, Any], with_ce: bool) -> Any:
    from trl import DistillationConfig, DistillationTrainer

    class WithAnswers(DistillationTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            return super()._generate_and_score_completions(inputs) | _answers(tokenizer, inputs, self.args.device)

        def _compute_loss(self, student: Any, inputs: Any, num_items_in_batch: Any) -> Any:
            loss, entropy, count = super()._compute_loss(student, inputs, num_items_in_batch)
            return loss + _cross_entropy(student, inputs), entropy, count

    dataset = _dataset(work, prompt=_prompt, answer=lambda row: row["answer"])
    teacher = copy.deepcopy(model).requires_grad_(False)
    args = DistillationConfig(beta=0.0, **settings)  # forward KL, as ours
    trainer = (WithAnswers if with_ce else DistillationTrainer)(
        model, teacher, args, train_dataset=dataset, processing_class=tokenizer
    )
    return trainer


def _sdft(model: Any, tokenizer: Any, work: Work, settings: dict[str, Any], with_ce: bool) -> Any:
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    class WithAnswers(SDFTTrainer):
        def _prepare_training_batch(self, inputs: Any) -> Any:
            rows = [{"prompt": row["prompt"], "answer": row["privileged_context"]} for row in inputs]
            return super()._prepare_training_batch(inputs) | _answers(tokenizer, rows, self.args.device)

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(model, inputs, *args, **kwargs) + _cross_entropy(model, inputs)

    dataset = _dataset(work, prompt=_prompt, privileged_context=lambda row: row["answer"])
    args = SDFTConfig(
        **settings,
        num_generations=1,
        max_prompt_length=None,
        distillation_topk=work.k,
        teacher_prompt_template=TEACHER_PROMPTS[RAFTConfig.teacher_prompt]("{prompt}", "{privileged_context}"),
    )
    return (WithAnswers if with_ce else SDFTTrainer)(model, args, train_dataset=dataset, processing_class=tokenizer)


def _answers(tokenizer: Any, rows: list[dict[str, Any]], device: torch.device) -> dict[str, Tensor]:
    """[rows, longest] ids, mask and labels of prompt and answer, padded on the right."""
    sequences, labels = [], []
    for row in rows:
        turn = {"role": "assistant", "content": row["answer"]}
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = tokenizer.apply_chat_template([*row["prompt"], turn], return_dict=True)["input_ids"]
        sequences.append(torch.tensor(whole))
        labels.append(torch.tensor([-100] * len(prompt) + whole[len(prompt) :]))
    pad = nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(ids) for ids in sequences], batch_first=True)
    found = {"answer_ids": pad(sequences, batch_first=True), "answer_mask": mask}
    found["answer_labels"] = pad(labels, batch_first=True, padding_value=-100)
    return {name: tensor.to(device) for name, tensor in found.items()}


def _cross_entropy(student: Any, inputs: dict[str, Tensor]) -> Tensor:
    ids, mask, labels = (inputs[f"answer_{name}"] for name in ("ids", "mask", "labels"))
    return student(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss


def _watch_rollouts(setup: Setup) -> None:
    trainer, tokens = setup.trainer, setup.tokens
    within(trainer, "_generate", partial(setup.watch.part, "rollout"))
    if getattr(trainer, "vllm_generation", None) is not None:
        within(trainer.vllm_generation, "sync_weights", partial(setup.watch.part, "refresh"))
    within(setup.model, "generate", tokens.generating)
    # In either trainer the result begins with the token ids of prompts and completions.
    observe(trainer, "_generate", lambda _, found: tokens.drawn(found[0], found[1]))


def _watch_teacher(setup: Setup) -> None:
    """SDFT calls the whole model, DistillationTrainer its decoder: there the teacher's logits are part of the loss."""
    teacher = setup.trainer.accelerator.unwrap_model(setup.trainer.teacher_model)
    for module in (teacher, teacher.get_decoder()):
        module.register_forward_pre_hook(lambda *_: setup.watch.start("teacher"))
        module.register_forward_hook(lambda *_: setup.watch.stop())
    setup.tokens.watch(teacher.get_decoder(), "teacher")


class Optimizer(TrainerCallback):
    """Times what follows the backward pass, which our trainer counts as the optimizer, and gives a step's seconds."""

    def __init__(self, watch: Stopwatch, last: dict[str, float]):
        self._watch, self._last = watch, last

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._watch.since_mark("optimizer")

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._last.clear()
        self._last.update(self._watch.take())
