"""Distillation in a plain PyTorch loop: the teacher's top-K once per batch, then the student's loss from hidden states.

    python examples/plain_loop.py

Neither model's head is called: the logits, [tokens, vocabulary], never exist.
"""

import torch
from tiny_models import VOCAB, pair
from torch import Tensor
from transformers import Qwen3ForCausalLM

from raft_kernels import TopK, linear_topk, topk_kl

K, TEMPERATURE, STEPS = 16, 1.5, 30


def micro_batches() -> list[tuple[Tensor, Tensor]]:
    """Token ids (B, T), and true at tokens of a completion. The two batches have different numbers of these."""
    generator = torch.Generator().manual_seed(0)
    prompt = 4
    batches = []
    for rows, length in ((3, 24), (2, 10)):
        ids = torch.randint(VOCAB, (rows, length), generator=generator)
        batches.append((ids, (torch.arange(length) >= prompt).expand(rows, length)))
    return batches


@torch.no_grad()
def teacher_top_k(teacher: Qwen3ForCausalLM, ids: Tensor, mask: Tensor) -> TopK:
    # The hidden state at a position predicts the next token, so the last position has nothing to predict.
    hidden = teacher.model(ids).last_hidden_state[:, :-1]
    return linear_topk(hidden, teacher.lm_head.weight, K, mask=mask[:, 1:])


def loss_sum(student: Qwen3ForCausalLM, ids: Tensor, mask: Tensor, teacher: TopK) -> Tensor:
    hidden = student.model(ids).last_hidden_state[:, :-1]
    return topk_kl(hidden, student.lm_head.weight, teacher, temperature=TEMPERATURE, mask=mask[:, 1:]).sum()


def main() -> None:
    student, teacher = pair()
    batches = [(ids, mask, teacher_top_k(teacher, ids, mask)) for ids, mask in micro_batches()]
    del teacher  # the loss needs only the K ids and K logits per token
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    for step in range(STEPS):
        # Counted over all micro-batches, so that each token of the step has the same weight.
        num_items = sum(mask[:, 1:].sum() for _, mask, _ in batches)
        total = 0.0
        for ids, mask, top_k in batches:
            loss = loss_sum(student, ids, mask, top_k) / num_items
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        if step in (0, STEPS - 1):
            print(f"step {step + 1:2d}  loss {total:.4f}")


if __name__ == "__main__":
    main()
