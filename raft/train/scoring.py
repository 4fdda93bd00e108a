"""The rollouts of a step before its forward: scored by the teacher, and one of them chosen to check the engine by."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from raft.models.language_model import LanguageModel, is_sharded
from raft.train.batching import units
from raft.train.config import RAFTConfig
from raft.train.gap import drops, gap_alone, to_compare
from raft.train.recorder import Recorder
from raft.train.rollout import MicroBatch, Scored
from raft.train.teacher import Teacher


class Scoring:
    """teacher: None for methods that do not distil. accelerator: of the trainer."""

    def __init__(
        self, args: RAFTConfig, student: LanguageModel, teacher: Teacher | None, recorder: Recorder, accelerator: Any
    ):
        self.teacher = teacher
        self.compared: Scored | None = None
        """The rollout of this step whose log-probabilities the step's forward compares with the engine's."""
        self._args, self._student, self._recorder, self._accelerator = args, student, recorder, accelerator

    def score(self, scored: list[Scored], later: Iterable[MicroBatch], wrapper: nn.Module) -> None:
        """Asks the teacher about the rollouts of a step that have no top-K yet.

        later: those of the same refresh for later steps, which are asked about too where the teacher's weights have to
        come from CPU memory. wrapper: the student as the trainer wrapped it.
        """
        if self.teacher is None:
            return
        if not self.teacher.is_sharded(wrapper) and all(s.teacher is not None for s in scored):
            return
        if self._args.teacher_offload:
            ahead = [units(micro, self._args.mask_truncated) for micro in later]
            scored = [*scored, *(s for rows in ahead for row in rows for s in row.scored)]
        with self._recorder.clock.part("teacher"), self._accelerator.autocast(), self.teacher.present():
            spans = self.teacher.score(scored, self._args, wrapper)
        self._recorder.scored(scored, spans)

    def compare(self, scored: list[Scored], wrapper: nn.Module) -> None:
        """Chooses the rollout by which engine and model are compared.

        The step's own forward gives the model's log-probabilities. Where that draws masks of dropout, a forward of its
        own does, except for sharded weights, for which all ranks would have to take part.
        """
        self.compared = to_compare(scored)
        if self.compared is None or not drops(self._student.model):
            return
        compared, self.compared = self.compared, None
        if not is_sharded(self._student.model, wrapper):
            with self._recorder.clock.part("forward_backward"), self._accelerator.autocast():
                self._recorder.engine_gap(gap_alone(compared, self._student))

    def k_for(self, share: float, wrapper: nn.Module) -> int | None:
        """K whose tokens would hold `share` of the teacher's probability on the last rollouts."""
        assert self.teacher is not None
        with self._accelerator.autocast(), self.teacher.present():
            return self.teacher.k_for(share, self._recorder.looked_at, self._args.temperature, wrapper)
