"""Distillation on given answers in TRL's SFTTrainer, with a frozen teacher and a replaced `compute_loss`.

    python examples/trl_sft_kd.py

SFTTrainer does tokenisation, chat templates, completion masks, truncation and logs.
"""

import tempfile

import torch
from datasets import Dataset
from tiny_models import pair, sentence, tokenizer
from torch import nn
from trl import SFTConfig, SFTTrainer

from raft_kernels import TopKDistillationLoss, linear_topk, topk_metrics


class SFTDistillationTrainer(SFTTrainer):
    def __init__(self, *args, teacher: nn.Module, distill: TopKDistillationLoss, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher.requires_grad_(False).eval().to(self.args.device)
        self.distill = distill

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        mask = inputs["labels"][:, 1:] != -100  # false on prompts and padding
        # Without labels and with the head at one position only, the model computes neither its own loss nor all logits.
        inputs = {name: x for name, x in inputs.items() if name != "labels"} | {"use_cache": False}
        outputs = model(**inputs, output_hidden_states=True, logits_to_keep=1)
        hidden = outputs.hidden_states[-1][:, :-1]
        weight = self.accelerator.unwrap_model(model).get_output_embeddings().weight
        with torch.no_grad():
            teacher_hidden = self.teacher.model(**inputs).last_hidden_state[:, :-1]
        top_k = linear_topk(
            teacher_hidden, self.teacher.lm_head.weight, self.distill.k, mask=mask, log_partition_at=1.0
        )
        loss = self.distill(hidden, weight, top_k, mask=mask, num_items=num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # items are counted over all ranks, gradients averaged

        # Metrics at temperature 1, whatever the temperature of the loss: hence log_partition_at=1.0 above.
        metrics = topk_metrics(hidden, weight, top_k, temperature=1.0, mask=mask)
        for name in ("teacher_mass", "top1_agreement"):
            mean = getattr(metrics, name).sum() / mask.sum().clamp(min=1)
            self._metrics["train" if self.model.training else "eval"][name].append(mean.item())
        return (loss, outputs) if return_outputs else loss


def trainer(folder: str, **options) -> SFTDistillationTrainer:
    defaults = {"max_steps": 20, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    defaults |= {"learning_rate": 1e-2, "logging_steps": 5, "save_strategy": "no", "report_to": "none"}
    defaults |= {"bf16": False, "gradient_checkpointing": False, "disable_tqdm": True, "dataloader_pin_memory": False}
    student, teacher = pair()
    answers = [{"prompt": sentence(4, seed=i), "completion": " " + sentence(3 + i, seed=100 + i)} for i in range(16)]
    return SFTDistillationTrainer(
        student,
        SFTConfig(folder, **defaults | options),
        train_dataset=Dataset.from_list(answers),
        processing_class=tokenizer(),
        teacher=teacher,
        distill=TopKDistillationLoss(k=16, temperature=1.5),
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        trainer(folder).train()
