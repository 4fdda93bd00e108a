"""A pack of rows as tensors, and both losses on the hidden states of its one forward (Eqs. 5-10).

Losses are sums, not means: the trainer divides them by the tokens and rollouts of the whole step, over all ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from raft.models.language_model import OutputHead
from raft.models.packing import Pack, move, pack_turns
from raft.train.batching import Unit
from raft.train.config import RAFTConfig
from raft.train.parts import Ahead, ahead
from raft.train.rollout import Scored
from raft_kernels import TopK, TopKMetrics, linear_cross_entropy, linear_topk, topk_kl, topk_metrics


@dataclass(frozen=True)
class Batch:
    """x + yhat of every row, then x + z of every scored rollout: M answer tokens, N rollout tokens, S rollouts."""

    pack: Pack
    sft_positions: Tensor  # [M] int64: positions in the pack that predict the answers' tokens
    sft_labels: Tensor  # [M] int64
    kl_positions: Tensor  # [N] int64: positions in the pack that predict the rollouts' tokens
    kl_weights: Tensor  # [N] float64: 1 / length of the rollout; the weighted sum over a rollout is its mean
    kl_rollout: Tensor  # [N] int64: index of the rollout in `scored`
    scored: tuple[Scored, ...]  # S
    teacher: TopK | None = None  # [N, K]

    def to(self, device: torch.device) -> "Batch":
        return replace(
            self,
            pack=self.pack.to(device),
            sft_positions=move(self.sft_positions, device),
            sft_labels=move(self.sft_labels, device),
            kl_positions=move(self.kl_positions, device),
            kl_weights=move(self.kl_weights, device),
            kl_rollout=move(self.kl_rollout, device),
        )


NOTHING: tuple[list[int], list[int]] = ([0], [])


def student_batch(rows: Sequence[Unit], *, share: bool = False) -> Batch:
    """Packs rows. A pack without rows gets one token, because every rank must run the same number of forwards.

    share: as in `pack_turns`.
    """
    scored = tuple(s for row in rows for s in row.scored)
    parts = [row.example.answers for row in rows]
    answers = [(before, tokens) for before, tokens, _ in parts]
    trained = torch.tensor([is_trained for *_, part in parts for is_trained in part], dtype=torch.bool)
    rollouts = [(s.example.prompt, s.completion.token_ids) for s in scored]
    packed, positions = pack_turns([*answers, *rollouts] or [NOTHING], share=share)
    split = sum(len(tokens) for _, tokens in answers)
    lengths = torch.tensor([len(s.completion.token_ids) for s in scored], dtype=torch.int64)
    known = [s.teacher for s in scored if s.teacher is not None]
    return Batch(
        pack=packed,
        sft_positions=positions[:split][trained],
        sft_labels=torch.tensor([token for _, tokens in answers for token in tokens], dtype=torch.int64)[trained],
        kl_positions=positions[split:],
        kl_weights=(1 / lengths.double()).repeat_interleave(lengths),
        kl_rollout=torch.arange(len(scored)).repeat_interleave(lengths),
        scored=scored,
        teacher=_joined(known) if known and len(known) == len(scored) else None,
    )


def _joined(parts: Sequence[TopK]) -> TopK:
    if len(parts) == 1:
        return parts[0]
    indices, logits, partitions = zip(*parts, strict=True)
    return TopK(torch.cat(indices), torch.cat(logits), None if partitions[0] is None else torch.cat(partitions))


def teacher_pack(scored: Sequence[Scored], *, share: bool = False) -> tuple[Pack, Tensor]:
    """The rollouts after the teacher's prompts: pack, and [N] positions in the order of `Batch.kl_positions`."""
    turns = [(s.example.teacher_prompt, s.completion.token_ids) for s in scored]
    return pack_turns(turns or [NOTHING], share=share)


def sft_sum(hidden: Tensor, head: OutputHead, batch: Batch) -> Tensor:
    """The student's cross-entropy, summed over the M answer tokens. hidden: [L, H], of the pack."""
    if not len(batch.sft_labels):  # zero, but part of the graph; Liger would divide by zero rows
        return hidden[:0].float().sum() + head.weight[:0].float().sum()
    return cross_entropy(hidden[batch.sft_positions], head, batch.sft_labels)


def kl_per_rollout(hidden: Tensor, head: OutputHead, batch: Batch, args: RAFTConfig) -> Tensor:
    """[S] float32: T^2 times the mean of KL(teacher_K || student_K) over a rollout's tokens (Eq. 10 per rollout)."""
    if batch.teacher is None:
        return hidden[:0].float().sum(-1)  # empty, but part of the graph
    return _divergences(hidden[batch.kl_positions], head, batch, batch.teacher, args)


def cross_entropy(states: Tensor, head: OutputHead, labels: Tensor, reduction: str = "sum") -> Tensor:
    """The student's cross-entropy. states: [M, H], before the head; labels: [M] int64."""
    bias = None if head.bias is None else head.bias * head.scale
    if head.scale != 1.0:
        states = states * head.scale
    return linear_cross_entropy(states, head.weight, labels, reduction=reduction, bias=bias, softcap=head.softcap)


def _divergences(
    states: Tensor, head: OutputHead, batch: Batch, teacher: TopK, args: RAFTConfig
) -> Tensor:  # [N, H] -> [S]
    tokens = topk_kl(
        states,
        head.weight,
        teacher,
        temperature=args.temperature,
        divergence=args.divergence,
        beta=args.jsd_beta,
        tail=args.tail,
        **head.options,
    )
    return tokens.new_zeros(len(batch.scored)).index_add(
        0, batch.kl_rollout, tokens * batch.kl_weights.to(tokens.dtype)
    )


class Losses(NamedTuple):
    """Both losses of a pack, as sums."""

    sft: Tensor  # scalar: L_SFT, summed over the answers' tokens
    kl: Tensor  # scalar: L_KL, summed over the rollouts
    kl_per_rollout: Tensor  # [S] float32, detached
    squares: tuple[Tensor, Tensor] | None = None
    """Float64 scalars, detached: squared norms of the gradients of `sft` and `kl` with respect to the hidden states
    before the head, [M, H] and [N, H]. A state shared by several sequences counts once for each. None: not measured."""


def losses(hidden: Tensor, head: OutputHead, batch: Batch, args: RAFTConfig, *, measured: bool = False) -> Losses:
    """L_SFT and L_KL of a pack. hidden: [L, H]. measured: also the norms of their gradients (`raft.train.parts`)."""
    if not measured:
        divergences = kl_per_rollout(hidden, head, batch, args)
        return Losses(sft_sum(hidden, head, batch), divergences.sum(), divergences.detach())
    zero = torch.zeros((), dtype=torch.float64, device=hidden.device)
    if len(batch.sft_labels):
        sft = ahead(lambda h, w: cross_entropy(h, w, batch.sft_labels), hidden[batch.sft_positions], head)
    else:
        nothing = sft_sum(hidden, head, batch)
        sft = Ahead(nothing, nothing.detach(), zero)
    teacher = batch.teacher
    if teacher is not None:
        kl = ahead(lambda h, w: _divergences(h, w, batch, teacher, args), hidden[batch.kl_positions], head)
    else:
        none = kl_per_rollout(hidden, head, batch, args)
        kl = Ahead(none.sum(), none.detach(), zero)
    return Losses(sft.total, kl.total, kl.values, (sft.square, kl.square))


def teacher_topk(hidden: Tensor, head: OutputHead, args: RAFTConfig) -> TopK:
    """The teacher's top K: [N, K] ids and logits, and the log-partition at T over the vocabulary. hidden: [N, H]."""
    return linear_topk(hidden, head.weight, args.top_k, log_partition_at=args.temperature, **head.options)


def statistics(hidden: Tensor, head: OutputHead, batch: Batch, args: RAFTConfig) -> TopKMetrics:
    """[N] each, at T: probability on the K tokens, entropies over them, top-1 agreement. One more head product."""
    assert batch.teacher is not None
    states = hidden[batch.kl_positions]
    return topk_metrics(states, head.weight, batch.teacher, temperature=args.temperature, **head.options)


def covered_mass(teacher: TopK, temperature: float) -> Tensor:
    """[N] float32: the probability that the teacher gives its K tokens at this temperature."""
    assert teacher.log_partition is not None
    return torch.exp(torch.logsumexp(teacher.logits / temperature, -1) - teacher.log_partition)
