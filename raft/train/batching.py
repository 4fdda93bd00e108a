"""How many rows go into one forward: whole micro-batches, or as many rows as fit into a budget of tokens.

A row and its rollouts stay together, so that every pack has both losses in about the proportion of the step, which is what
lambda is taken from. Of the packs that a budget allows, all are made about equally long: the longest decides the memory.
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
    """A row with those of its rollouts that the teacher scores."""

    example: Example
    scored: tuple[Scored, ...] = ()
    shares: bool = False  # one copy of the prompt for all

    @property
    def tokens(self) -> int:
        """Of the pack: the last token of each sequence predicts nothing and is left out."""
        example = self.example
        prompts = len(self.scored)
        if self.shares:  # one for all rollouts, none where the same stands before the answer
            prompts = min(prompts, bool(example.earlier or example.differs))
        rollouts = sum(len(s.completion.token_ids) - 1 for s in self.scored)
        return (
            len(example.prompt) - example.differs + len(example.target) - 1 + prompts * len(example.prompt) + rollouts
        )


def units(micro: MicroBatch, mask_truncated: bool = False, shares: bool = False) -> list[Unit]:
    """The rows of a micro-batch. Rollouts without a token, and truncated ones if so asked, are left out of L_KL."""

    def counts(completion: Completion) -> bool:
        return bool(completion.token_ids) and not (mask_truncated and completion.finish_reason == "length")

    if not micro.rollouts:
        return [Unit(example) for example in micro.examples]
    return [
        Unit(example, tuple(s for s in scored if counts(s.completion)), shares)
        for example, scored in zip(micro.examples, micro.rollouts, strict=True)
    ]


def check_budget(budget: int | None, examples: Sequence[Example], rollouts: int, max_tokens: int) -> None:
    """Refuses a budget that the longest row, its rollouts at their longest, would not fit into."""
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
    """`packs` lists of rows, or as many as it takes for none to hold more than `budget` tokens. No row is lost.

    Longest first, each into the shortest list: the usual approximation for even loads. Rows keep their order in a list.
    """
    order = sorted(range(len(rows)), key=lambda i: -rows[i].tokens)
    packs = max(packs, min(len(rows), -(-sum(row.tokens for row in rows) // budget)))
    while True:
        loads, members = [0] * packs, [[] for _ in range(packs)]  # type: ignore[var-annotated]
        for i in order:
            least = loads.index(min(loads))
            loads[least] += rows[i].tokens
            members[least].append(i)
        if max(loads) <= budget or packs >= len(rows):
            return [[rows[i] for i in sorted(chosen)] for chosen in members]
        packs += 1


def split_alike(rows: Sequence[Unit], budget: int, accelerator: Accelerator) -> list[list[Unit]]:
    """`split` into as many packs on every rank: each pack's losses are summed over the ranks. Some may be empty."""
    packs = split(rows, budget)
    if accelerator.num_processes == 1:
        return packs
    count = accelerator.gather(torch.tensor([len(packs)], device=accelerator.device)).max().item()
    return split(rows, budget, int(count))
