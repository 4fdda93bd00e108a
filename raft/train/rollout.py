"""When rollouts are generated, and from which seeds.

One call of the engine generates for `steps_per_refresh` optimizer steps, or for those left in the epoch or run if they
are fewer, so every epoch starts with rollouts of the newest weights. The seed of a call depends only on the run's seed,
the optimizer step and the rank, and rollouts not yet trained on are part of the checkpoint. So a resumed run trains on
exactly the same rollouts as an uninterrupted one.
"""

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypedDict

from raft.engines import Completion, Sampling
from raft.engines.base import FinishReason
from raft.train.config import RAFTConfig
from raft.train.data import Example
from raft_kernels import TopK

logger = logging.getLogger(__name__)

COMPARED = 4  # rollouts of a call for which the engine returns log-probabilities; `raft.train.gap` uses one of them

Generate = Callable[[list[list[int]], Sampling], list[Completion]]


@dataclass
class Scored:
    """A rollout, and the teacher's top K at its tokens once the teacher has scored it."""

    example: Example
    completion: Completion
    teacher: TopK | None = None  # [tokens, K]


@dataclass
class MicroBatch:
    """The rows of one batch of the dataloader, with the rollouts of each row (none for methods that do not distil)."""

    examples: list[Example]
    rollouts: list[list[Scored]] = field(default_factory=list)


class SavedRollout(TypedDict):
    """A rollout in a checkpoint. Without log-probabilities: a later step has newer weights, so they do not compare."""

    token_ids: list[int]
    finish_reason: FinishReason


class SavedRow(TypedDict):
    """The rollouts of a row that were not yet trained on."""

    id: str
    rollouts: list[SavedRollout]


def call_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the engine call in an optimizer step, from 0 to 2**31 - 1."""
    digest = hashlib.blake2s(f"{seed}/{step}/{rank}".encode()).digest()
    return int.from_bytes(digest[:4], "little") & 0x7FFF_FFFF


class RolloutQueue:
    """Micro-batches with their rollouts, generated for up to `steps_per_refresh` optimizer steps at once."""

    def __init__(self, args: RAFTConfig):
        self.args = args
        self._ready: deque[MicroBatch] = deque()
        self._restored: list[list[SavedRow]] = []

    def __len__(self) -> int:
        return len(self._ready)

    def __iter__(self) -> Iterator[MicroBatch]:
        """The micro-batches that were generated and not yet taken."""
        return iter(self._ready)

    def take(
        self, batches: Iterator[list[Example]], count: int, step: int, steps_left: int, generate: Generate
    ) -> list[MicroBatch]:
        """The next `count` micro-batches, fewer at the end of the data. Generates rollouts if none are left."""
        if not self._ready:
            self._restore(batches)
        if not self._ready:
            ahead = min(self.args.steps_per_refresh, max(steps_left, 1)) - 1
            self._fill(_next(batches, count + ahead * self.args.gradient_accumulation_steps), step, generate)
        return [self._ready.popleft() for _ in range(min(count, len(self._ready)))]

    def _fill(self, rows: list[list[Example]], step: int, generate: Generate) -> None:
        self._ready.extend(MicroBatch(examples) for examples in rows)
        if not self.args.preset.distills or not rows:
            return
        n = self.args.rollouts_per_prompt
        prompts = [example.prompt for examples in rows for example in examples for _ in range(n)]
        sampling = Sampling(
            temperature=self.args.rollout_temperature,
            top_p=self.args.rollout_top_p,
            max_tokens=self.args.rollout_max_tokens,
            seed=call_seed(self.args.seed, step, self.args.process_index),
            logprobs=COMPARED,
        )
        completions = iter(generate(prompts, sampling))
        for micro in self._ready:
            micro.rollouts = [[Scored(example, next(completions)) for _ in range(n)] for example in micro.examples]

    def _restore(self, batches: Iterator[list[Example]]) -> None:
        """Assigns the rollouts of a checkpoint to the rows that they were generated for."""
        stored, self._restored = self._restored, []
        if not stored:
            return
        for examples, saved in zip(_next(batches, len(stored)), stored, strict=False):
            if [example.id for example in examples] != [row["id"] for row in saved]:
                raise ValueError(
                    "the checkpoint's rollouts belong to other rows: resume with the data, the seed and the batch size "
                    "it was made with"
                )
            rollouts = [
                [Scored(example, Completion(**c)) for c in row["rollouts"]]
                for example, row in zip(examples, saved, strict=True)
            ]
            self._ready.append(MicroBatch(examples, rollouts))

    def state_dict(self) -> list[list[SavedRow]]:
        return [
            [
                {
                    "id": example.id,
                    "rollouts": [
                        {"token_ids": s.completion.token_ids, "finish_reason": s.completion.finish_reason}
                        for s in scored
                    ],
                }
                for example, scored in zip(micro.examples, micro.rollouts, strict=True)
            ]
            for micro in self._ready
            if micro.rollouts
        ]

    def load_state_dict(self, state: list[list[SavedRow]]) -> None:
        self._ready.clear()
        self._restored = state


def _next(batches: Iterator[list[Example]], count: int) -> list[list[Example]]:
    taken = []
    for _ in range(count):
        try:
            taken.append(next(batches))
        except StopIteration:
            break
    return taken
