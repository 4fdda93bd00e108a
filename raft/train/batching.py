"""Which rows go into one forward: a whole micro-batch, or as many rows as fit into a budget of tokens.

A row and its rollouts stay in the same pack, so that each pack has both losses in about the proportion of the whole
step; lambda is computed from it. All packs get about the same length, because the longest one decides the peak memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from raft.engines import Completion
from raft.errors import ConfigError
from raft.train.data import Example
from raft.train.rollout import MicroBatch, Scored


@dataclass(frozen=True)
class Unit:
    """A row, and those of its rollouts that count in L_KL."""

    example: Example
    scored: tuple[Scored, ...] = ()
    shares: bool = False  # the pack holds the prompt once, for the answer and all rollouts

    @property
    def tokens(self) -> int:
        """Tokens in the pack. The last token of each sequence is left out: it predicts nothing."""
        example = self.example
        prompts = len(self.scored)
        if self.shares:  # one copy for all rollouts; none if the answer has the same context
            prompts = min(prompts, bool(example.earlier or example.differs))
        rollouts = sum(len(s.completion.token_ids) - 1 for s in self.scored)
        return (
            len(example.prompt) - example.differs + len(example.target) - 1 + prompts * len(example.prompt) + rollouts
        )


def units(micro: MicroBatch, mask_truncated: bool = False, shares: bool = False) -> list[Unit]:
    """The rows of a micro-batch. Empty rollouts, and truncated ones under `mask_truncated`, are left out of L_KL."""

    def counts(completion: Completion) -> bool:
        return bool(completion.token_ids) and not (mask_truncated and completion.finish_reason == "length")

    if not micro.rollouts:
        return [Unit(example) for example in micro.examples]
    return [
        Unit(example, tuple(s for s in scored if counts(s.completion)), shares)
        for example, scored in zip(micro.examples, micro.rollouts, strict=True)
    ]


def check_budget(budget: int | None, examples: Sequence[Example], rollouts: int, max_tokens: int) -> None:
    """ConfigError if the longest row, with rollouts of `max_tokens` tokens, would exceed the budget."""
    if budget is None or not examples:
        return

    def most(example: Example) -> int:
        return len(example.prompt) + len(example.target) + rollouts * (len(example.prompt) + max_tokens)

    longest = max(examples, key=most)
    if most(longest) > budget:
        raise ConfigError(
            f"max_tokens_per_micro_batch: expected at least {most(longest)}, which row {longest.id} may need "
            f"with {rollouts} rollouts of {max_tokens} tokens, found {budget}"
        )


def split(rows: Sequence[Unit], budget: int, packs: int = 1) -> list[list[Unit]]:
    """At least `packs` lists of rows, and more until none exceeds `budget` tokens (a single longer row may).

    Greedy: the longest row first, each into the shortest list so far. Within a list rows keep their order.
    """
    order = sorted(range(len(rows)), key=lambda i: -rows[i].tokens)
    packs = max(packs, min(len(rows), -(-sum(row.tokens for row in rows) // budget)))
    while True:
        loads = [0] * packs
        members: list[list[int]] = [[] for _ in range(packs)]
        for i in order:
            least = loads.index(min(loads))
            loads[least] += rows[i].tokens
            members[least].append(i)
        if max(loads) <= budget or packs >= len(rows):
            return [[rows[i] for i in sorted(chosen)] for chosen in members]
        packs += 1


def split_alike(rows: Sequence[Unit], budget: int, accelerator: Accelerator) -> list[list[Unit]]:
    """`split` into the same number of packs on every rank, since ranks sum losses pack by pack. Some may be empty."""
    packs = split(rows, budget)
    if accelerator.num_processes == 1:
        return packs
    count = accelerator.gather(torch.tensor([len(packs)], device=accelerator.device)).max().item()
    return split(rows, budget, int(count))
