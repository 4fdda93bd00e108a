"""One optimizer step: how its rows are split into packs, and the loss of each pack."""

from collections.abc import Callable, Sequence
from typing import TypedDict

import torch
from accelerate import Accelerator
from torch import Tensor

from raft.models.packing import move
from raft.train.balance import Balance, mean_norm
from raft.train.batching import Unit, split_alike
from raft.train.config import RAFTConfig
from raft.train.losses import Batch, Losses, student_batch


class MicroBatchInputs(TypedDict):
    """What transformers hands from `get_batch_samples` to `training_step`."""

    input_ids: Tensor  # [1, L] int64, of all packs: transformers counts the tokens in it
    packs: list[Batch]


class PackInputs(TypedDict):
    """What `training_step` hands to `compute_loss`."""

    batch: Batch
    last: bool  # whether it is the last pack of an optimizer step


class Step:
    """The loss of a step, pack by pack. lambda follows from the losses (or gradient norms) of the packs so far."""

    def __init__(
        self,
        args: RAFTConfig,
        balance: Balance,
        reduce: Callable[[Tensor], Tensor],  # sum over the ranks
        rollouts: Tensor,  # number of scored rollouts of the step, over all ranks
        number: int,  # from 1
    ):
        self.number, self.rollouts = number, rollouts
        every = args.log_gradient_parts
        self.measured = args.balances_gradients or bool(every and number % every == 0)
        """Whether the norms of the gradients of both losses are measured."""
        self.weight: Tensor | None = None
        """lambda of the last pack."""
        self._distills, self._by_norms = args.preset.distills, args.balances_gradients
        self._balance, self._reduce = balance, reduce
        # Sums over the packs so far: L_SFT, answer tokens, L_KL, rollouts. With balance gradient, the squared gradient
        # norms replace the losses.
        self._seen = torch.zeros(4, dtype=torch.float64, device=args.device)

    def loss(self, batch: Batch, found: Losses, answer_tokens: Tensor | int) -> tuple[Tensor, dict[str, Tensor]]:
        """What a pack adds to L_SFT + lambda * L_KL of the step, and its parts for the metrics.

        answer_tokens: number in the whole step, over all ranks.
        """
        loss = found.sft / answer_tokens
        parts = {"loss_sft": loss}
        if found.squares is not None:
            parts["gradient_sft"] = found.squares[0] / answer_tokens**2
        if self._distills:
            rollouts = self.rollouts.clamp(min=1)
            parts["loss_kl"] = found.kl / rollouts
            weight = self._weigh(batch, found, answer_tokens)
            loss = loss + weight.to(found.kl.dtype) * parts["loss_kl"]
            if found.squares is not None:
                parts["gradient_kl"] = found.squares[1] * (weight / rollouts) ** 2
        return loss, parts

    def _weigh(self, batch: Batch, found: Losses, answer_tokens: Tensor | int) -> Tensor:
        """lambda of this pack."""
        squares = found.squares if self._by_norms else None
        sft, kl = squares or (found.sft.detach(), found.kl.detach())
        counts = move(torch.tensor([len(batch.sft_labels), len(batch.scored)], dtype=torch.float64), sft.device)
        self._seen = self._seen + torch.stack((sft, counts[0], kl, counts[1]))
        seen_sft, tokens, seen_kl, rollouts = self._reduce(self._seen).unbind()
        if squares is None:
            self.weight = self._balance.weigh(seen_sft / tokens, seen_kl / rollouts)
        else:
            norms = mean_norm(seen_sft, tokens, answer_tokens), mean_norm(seen_kl, rollouts, self.rollouts)
            self.weight = self._balance.weigh(*norms)
        return self.weight


def make_balance(args: RAFTConfig) -> Balance:
    bounds = {"lambda_min": args.lambda_min, "lambda_max": args.lambda_bound}
    return Balance(args.ema_beta, args.ema_eps, **bounds, fixed=args.fixed_lambda)


def micro_batches(
    rows: list[list[Unit]], args: RAFTConfig, accelerator: Accelerator, *, share: bool
) -> list[MicroBatchInputs]:
    """The packs of a step as tensors on the device. They take the teacher's top K away from the rollouts.

    rows: one list per micro-batch. share: as in `student_batch`.
    """
    inputs: list[MicroBatchInputs] = []
    for groups in _split(rows, args.max_tokens_per_micro_batch, accelerator):
        packs = [student_batch(group, share=share).to(args.device) for group in groups]
        for s in (s for pack in packs for s in pack.scored):
            s.teacher = None  # only the pack keeps it, until the step ends
        inputs.append({"input_ids": _token_ids(packs, args.device), "packs": packs})
    return inputs


def _split(rows: list[list[Unit]], budget: int | None, accelerator: Accelerator) -> list[list[list[Unit]]]:
    """Splits the rows of a step into packs, grouped by micro-batch. rows: one list per micro-batch.

    budget: largest number of tokens in a pack. With a budget, rows move between micro-batches, and all but the last may
    have no packs. None: each micro-batch is one pack.
    """
    if budget is None:
        return [[chosen] for chosen in rows]
    packs = split_alike([row for chosen in rows for row in chosen], budget, accelerator)
    ends = [len(packs) * (i + 1) // len(rows) for i in range(len(rows))]
    return [packs[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _token_ids(packs: Sequence[Batch], device: torch.device) -> Tensor:
    """[1, L] int64: the token ids of all packs, concatenated."""
    if len(packs) == 1:
        return packs[0].pack.input_ids
    return torch.cat([torch.empty(1, 0, dtype=torch.int64, device=device), *(b.pack.input_ids for b in packs)], dim=1)
