"""A refinement that keeps the numbers of its stages."""

from dataclasses import dataclass, field

from raft.refine.context import RefineContext
from raft.refine.progress import StageNumbers, StageProgress


@dataclass(frozen=True)
class CountedContext(RefineContext):
    """A context that knows, after the stages, what each came to."""

    bars: list[StageProgress] = field(default_factory=list)
    """Of the stages, in their order."""

    @classmethod
    def of(cls, context: RefineContext) -> "CountedContext":
        """With the parts of `context`."""
        return cls(**vars(context))

    def bar(self, stage: str, rows: int, *, per_call: bool = False) -> StageProgress:
        """Progress of a stage over `rows` rows, to be entered."""
        model = {"rewrite": self.models.rewriter, "fuse": self.models.fuser}.get(stage)
        self.bars.append(StageProgress(stage, rows, per_call=per_call, show=self.progress, model=model))
        return self.bars[-1]

    @property
    def numbers(self) -> list[StageNumbers]:
        return [bar.numbers for bar in self.bars]
