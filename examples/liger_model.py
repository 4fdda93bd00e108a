"""Distillation of a model patched by Liger: its layers run Liger's kernels, the loss is that of `raft_kernels`.

    python examples/liger_model.py

Liger's own fused loss is part of the whole model's forward. The loss here needs only the hidden states of the backbone,
neither that forward nor logits, so the two do not conflict.
"""

import torch

if not torch.cuda.is_available():
    import triton_on_cpu  # noqa: F401

from liger_kernel.transformers import apply_liger_kernel_to_qwen3
from tiny_models import VOCAB, pair
from torch import Tensor

from raft_kernels import TopKDistillationLoss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS = 5


def step(student, teacher, distill: TopKDistillationLoss, ids: Tensor, mask: Tensor) -> tuple[float, Tensor]:
    """The loss, and the gradient of all parameters as one vector."""
    hidden = student.model(ids).last_hidden_state[:, :-1]
    with torch.no_grad():
        teacher_hidden = teacher.model(ids).last_hidden_state[:, :-1]
    student.zero_grad()
    loss = distill(hidden, student.lm_head.weight, teacher_hidden, teacher.lm_head.weight, mask=mask[:, 1:])
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in student.parameters()])


def main() -> None:
    student, teacher = (model.to(DEVICE) for model in pair())
    ids = torch.randint(VOCAB, (2, 8), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    mask = torch.arange(8, device=DEVICE).expand(2, 8) >= 2
    batch = (teacher, TopKDistillationLoss(k=16, temperature=1.5), ids, mask)

    loss, gradient = step(student, *batch)
    apply_liger_kernel_to_qwen3(model=student)
    layer = student.model.layers[0]
    print("patched:", layer.input_layernorm._get_name(), layer.mlp._get_name())
    patched_loss, patched_gradient = step(student, *batch)
    difference = (patched_gradient - gradient).norm() / gradient.norm()
    print(f"loss {loss:.7f} before, {patched_loss:.7f} after; gradients differ by {difference.item():.1e}")

    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    for number in range(STEPS):
        loss, _ = step(student, *batch)
        optimizer.step()
        if number in (0, STEPS - 1):
            print(f"step {number + 1}  loss {loss:.4f}")


if __name__ == "__main__":
    main()
