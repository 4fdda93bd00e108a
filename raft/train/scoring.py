"""Before the forward of a step: the teacher scores its rollouts, and one of them is chosen to check the engine."""

from collections.abc import Iterable

from accelerate import Accelerator
from torch import nn

from raft.models.language_model import LanguageModel, is_sharded
from raft.train.batching import units
from raft.train.config import RAFTConfig
from raft.train.gap import drops, gap_alone, to_compare
from raft.train.recorder import Recorder
from raft.train.rollout import MicroBatch, Scored
from raft.train.teacher import Teacher


class Scoring:
    """teacher: None for methods that do not distil. accelerator: the trainer's."""

    def __init__(
        self,
        args: RAFTConfig,
        student: LanguageModel,
        teacher: Teacher | None,
        recorder: Recorder,
        accelerator: Accelerator,
    ):
        self.teacher = teacher
        self.compared: Scored | None = None
        """The rollout whose log-probabilities of the engine are compared with those of this step's forward."""
        self._args, self._student, self._recorder, self._accelerator = args, student, recorder, accelerator

    def score(self, scored: list[Scored], later: Iterable[MicroBatch], wrapper: nn.Module) -> None:
        """Lets the teacher score those rollouts of a step that have no top K yet.

        later: the same refresh's micro-batches for later steps. Under teacher_offload their rollouts are scored too, so
        that the teacher's weights are moved to the device once. wrapper: the student as the trainer wrapped it.
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
        """Chooses the rollout on which engine and model are compared.

        The training forward gives the model's log-probabilities. For a model with dropout a separate forward in eval
        mode gives them, but not if its weights are sharded, since all ranks would have to run that forward.
        """
        self.compared = to_compare(scored)
        if self.compared is None or not drops(self._student.model):
            return
        compared, self.compared = self.compared, None
        if not is_sharded(self._student.model, wrapper):
            with self._recorder.clock.part("forward_backward"), self._accelerator.autocast():
                self._recorder.engine_gap(gap_alone(compared, self._student))

    def k_for(self, share: float, wrapper: nn.Module) -> int | None:
        """The K whose tokens hold `share` of the teacher's probability on rollouts scored last; None if unknown."""
        assert self.teacher is not None
        with self._accelerator.autocast(), self.teacher.present():
            return self.teacher.k_for(share, self._recorder.looked_at, self._args.temperature, wrapper)
