"""How usual an answer is to a model: negative log-likelihood a token, given the question."""

from collections.abc import Sequence
from typing import Any

from raft.engines.chat import chat_ids
from raft.progress import call
from raft.prompts import Message

# Tokens of a forward pass, padding included: bounds the logits, which are this times the vocabulary.
_TOKENS = 2048


def answer_nll(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[Message]], answers: Sequence[str]
) -> list[float | None]:
    """Mean over the answer's tokens of -log p(token | chat, tokens before), in nats; None for an answer without tokens."""
    import torch

    inputs = []
    for prompt, answer in zip(prompts, answers, strict=True):
        inputs.append((chat_ids(tokenizer, prompt), tokenizer(answer, add_special_tokens=False)["input_ids"]))
    device = model.get_input_embeddings().weight.device
    result: list[float | None] = [None] * len(inputs)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), call(len(inputs)) as progress:
            for batch in _batches([len(asked) + len(said) for asked, said in inputs]):
                width = max(len(inputs[i][0]) + len(inputs[i][1]) for i in batch)
                # Padding on the right needs no mask in a causal model: no answer looks that far.
                ids = torch.zeros(len(batch), width, dtype=torch.long)
                for row, i in enumerate(batch):
                    both = [*inputs[i][0], *inputs[i][1]]
                    ids[row, : len(both)] = torch.tensor(both)
                logits = model(input_ids=ids.to(device), use_cache=False).logits  # [B, width, V]
                for row, i in enumerate(batch):
                    asked, said = inputs[i]
                    if said:
                        at = logits[row, len(asked) - 1 : len(asked) - 1 + len(said)].float()
                        result[i] = float(torch.nn.functional.cross_entropy(at, torch.tensor(said, device=at.device)))
                progress.finished(len(batch))
    finally:
        model.train(was_training)
    return result


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of sequences of like length, each batch within the tokens of a forward pass (or a single sequence)."""
    batches: list[list[int]] = []
    width = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * width <= _TOKENS:
            batches[-1].append(i)
        else:
            batches.append([i])
            width = lengths[i]
    return batches
