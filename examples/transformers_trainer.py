"""Distillation in transformers.Trainer: one overridden method, `compute_loss`.

    python examples/transformers_trainer.py

For one device or data parallelism. Under FSDP or ZeRO-3 the heads' weights must be gathered for the loss.
"""

import tempfile

import torch
from tiny_models import VOCAB, pair
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer, TrainingArguments

from raft_kernels import TopKDistillationLoss


class DistillationTrainer(Trainer):
    def __init__(self, *args, teacher: nn.Module, distill: TopKDistillationLoss, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher.requires_grad_(False).eval().to(self.args.device)
        self.distill = distill
        # compute_loss divides by num_items_in_batch. Trainer infers that from the signature of the model's forward; if
        # it infers no, it counts no items and divides by the number of accumulation steps.
        self.model_accepts_loss_kwargs = True

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # num_items_in_batch counts the same shifted labels over all micro-batches of the step.
        mask = inputs["labels"][:, 1:] != -100
        # With labels the model would compute its own loss, and all logits for it.
        tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        # The whole student is called, so that wrappers (DDP) see the call. Its head runs at one position only.
        outputs = model(**tokens, output_hidden_states=True, logits_to_keep=1, use_cache=False)
        with torch.no_grad():
            teacher_hidden = self.teacher.model(**tokens, use_cache=False).last_hidden_state
        loss = self.distill(
            outputs.hidden_states[-1][:, :-1],  # after the final norm
            self.accelerator.unwrap_model(model).get_output_embeddings().weight,
            teacher_hidden[:, :-1],
            self.teacher.lm_head.weight,
            mask=mask,
            num_items=num_items_in_batch,  # None if Trainer does not count: then the mean over this batch
        )
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # items are counted over all ranks, gradients averaged
        return (loss, outputs) if return_outputs else loss


def rows() -> list[dict[str, Tensor]]:
    """Eight made-up sequences: prompts of 4 tokens, completions of very different lengths."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(VOCAB, (length,), generator=generator) for length in (6, 32, 8, 20, 30, 7, 12, 25)]
    return [{"input_ids": x, "labels": torch.where(torch.arange(len(x)) < 4, -100, x)} for x in ids]


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    ids, labels = ([row[name] for row in rows] for name in ("input_ids", "labels"))
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(x) for x in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


def trainer(folder: str, **options) -> DistillationTrainer:
    defaults = {"max_steps": 20, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    defaults |= {"learning_rate": 1e-2, "logging_steps": 5, "save_strategy": "no", "report_to": "none"}
    student, teacher = pair()
    return DistillationTrainer(
        student,
        TrainingArguments(folder, disable_tqdm=True, dataloader_pin_memory=False, **defaults | options),
        train_dataset=rows(),
        data_collator=collate,
        teacher=teacher,
        distill=TopKDistillationLoss(k=16, temperature=1.5),
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        trainer(folder).train()
