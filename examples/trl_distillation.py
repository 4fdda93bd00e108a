"""TRL's DistillationTrainer with the divergence over the teacher's top-K instead of the whole vocabulary.

    python examples/trl_distillation.py

The rest is TRL's: the student's rollouts, masks, the count of items, metrics and logs. For text models whose logits
have no soft-cap and no scale; otherwise pass `softcap` and `logit_scale` to each function.
"""

import tempfile

import torch
from datasets import Dataset
from tiny_models import pair, sentence, tokenizer
from trl import DistillationConfig, DistillationTrainer

from raft_kernels import TopKDistillationLoss, linear_topk, topk_metrics

# TRL does not multiply by temperature**2.
distill = TopKDistillationLoss(k=16, scale_by_t2=False)


class TopKDistillationTrainer(DistillationTrainer):
    """TRL calls `_compute_loss` inside the forward of the wrapped student, so DDP needs nothing else."""

    def _compute_loss(self, student, inputs, num_items_in_batch):
        ids, attention_mask = (
            torch.cat([inputs[f"prompt_{name}"], inputs[f"completion_{name}"]], dim=1) for name in ("ids", "mask")
        )
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        teacher = self.accelerator.unwrap_model(self.teacher_model).eval()
        # TRL's method shifts: these hidden states predict the tokens of the completion.
        completion = inputs["completion_ids"].size(1)
        hidden = self._get_last_hidden_state(student, ids, attention_mask, completion)
        with torch.no_grad():
            teacher_hidden = self._get_last_hidden_state(teacher, ids, attention_mask, completion)

        head, teacher_head = student.get_output_embeddings(), teacher.get_output_embeddings()
        top_k = linear_topk(teacher_hidden, teacher_head.weight, distill.k, bias=teacher_head.bias, mask=mask)
        options = {"temperature": self.temperature, "bias": head.bias, "mask": mask}
        loss = distill(
            hidden,
            head.weight,
            top_k,
            divergence={0.0: "forward", 1.0: "reverse"}.get(self.beta, "jsd"),
            beta=self.beta,  # the teacher's weight in the mixture of "jsd", as in TRL
            num_items=num_items_in_batch,
            **options,
        )
        # TRL logs its mean as "entropy". Here it is the entropy of the student, renormalised to the teacher's top-K.
        entropy = topk_metrics(hidden, head.weight, top_k, **options).student_entropy
        return loss, entropy.sum(), mask.sum()


def trainer(folder: str, **options) -> TopKDistillationTrainer:
    defaults = {"max_steps": 30, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    defaults |= {"learning_rate": 1e-2, "logging_steps": 5, "save_strategy": "no", "report_to": "none"}
    defaults |= {"beta": 0.0, "max_completion_length": 12}
    defaults |= {"bf16": False, "gradient_checkpointing": False, "disable_tqdm": True, "dataloader_pin_memory": False}
    student, teacher = pair()
    return TopKDistillationTrainer(
        student,
        teacher,
        DistillationConfig(folder, **defaults | options),
        train_dataset=Dataset.from_dict({"prompt": [sentence(3 + i % 5, seed=i) for i in range(32)]}),
        processing_class=tokenizer(),
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        trainer(folder).train()
