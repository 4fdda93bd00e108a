"""Checks that the rollout engine and the trainer compute the same model: one number for one rollout of each refresh.

    gap = mean over the rollout's tokens t of |log p_engine(z_t | x, z_<t) - log p_trainer(z_t | x, z_<t)|, in nats

Both are log-softmax values over the whole vocabulary at temperature 1, before sampling temperature and top-p. vLLM
returns them from its decoding steps (logprobs_mode raw_logprobs). The trainer computes its own in the first step after
the refresh, whose forward still has the weights that the rollout was sampled with.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from raft.models.language_model import LanguageModel, OutputHead
from raft.models.packing import move, pack_turns
from raft.train.losses import Batch, cross_entropy
from raft.train.rollout import Scored


def to_compare(scored: Iterable[Scored]) -> Scored | None:
    """The longest rollout with log-probabilities of the engine (a mean over few tokens is noisy); None without any."""
    told = [s for s in scored if s.completion.logprobs]
    return max(told, key=lambda s: len(s.completion.token_ids), default=None)


def gap_in(batch: Batch, compared: Scored | None, hidden: Tensor, head: OutputHead) -> Tensor | None:
    """The gap, a float32 scalar. hidden: [L, H], of a training forward. None if the rollout is in another pack."""
    first = 0
    for s in batch.scored:
        count = len(s.completion.token_ids)
        if s is compared:
            return _gap(hidden[batch.kl_positions[first : first + count]], head, s)
        first += count
    return None


@torch.no_grad()
def gap_alone(compared: Scored, student: LanguageModel) -> Tensor:
    """The gap from a separate forward in eval mode, for models with dropout: the engine applies none."""
    packed, positions = pack_turns([(compared.example.prompt, compared.completion.token_ids)], share=False)
    device = student.head().weight.device
    was_training = student.model.training
    student.model.eval()
    try:
        with student.attention():
            hidden = student.hidden(packed.to(device))
    finally:
        student.model.train(was_training)
    return _gap(hidden[move(positions, device)], student.head(), compared)


@torch.no_grad()
def _gap(states: Tensor, head: OutputHead, compared: Scored) -> Tensor:  # [n, H]
    token_ids, told = compared.completion.token_ids, compared.completion.logprobs
    assert told is not None
    labels = move(torch.tensor(token_ids), states.device)
    own = -cross_entropy(states.detach(), replace(head, weight=head.weight.detach()), labels, reduction="none")
    return (move(torch.tensor(told, dtype=own.dtype), states.device) - own).abs().mean()


def drops(model: nn.Module) -> bool:
    """Whether the model has dropout, in a layer or in the attention."""
    return any(
        (isinstance(module, nn.Dropout) and module.p > 0) or _share(module, "attention_dropout") > 0
        for module in model.modules()
    )


def _share(module: nn.Module, name: str) -> float:
    value = getattr(module, name, 0.0)
    return value if isinstance(value, float) else 0.0
