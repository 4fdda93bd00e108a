"""The base class of training methods.

A method says which answer is trained on, whether the student also learns from a teacher on its own rollouts, what that
teacher reads, which terms are added to the loss, which parameters are trained, and how the weights are changed after
training. A new method is one new file in this folder; `raft.methods.METHODS` finds it.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from raft.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from raft.train.config import RAFTConfig

Target = Literal["fused", "raw", "rewritten"]
TeacherContext = Literal["answer", "none"]

BLIND_LAMBDA_MAX = 10.0
"""Upper bound of lambda if the teacher does not see the answer and lambda_max is not set.

Such a teacher reads the same prompt as the student and equals it at the start. L_KL starts at 0, Eq. 12 divides by it,
and lambda grows without limit (to thousands on the micro-world), so that the student stops learning the answers. The
bound is our choice: above the 3 to 4 at which the ratio of the losses settles in the paper (Fig. 2a), and far below
such growth."""


class Method:
    """A training method. The class attributes describe the method; an instance belongs to one training.

    The settings `target` and `teacher_context` of RAFTConfig override the class attributes, for ablations.
    """

    name: ClassVar[str]
    """Value of the setting `method`."""
    citation: ClassVar[str]
    target: ClassVar[Target]
    """The answer that the student is trained on, and that the teacher is shown."""
    distills: ClassVar[bool] = False
    """Whether the student also learns from the teacher on its own rollouts (Eqs. 6-10)."""
    teacher_context: ClassVar[TeacherContext] = "answer"
    """What the teacher reads besides the question: the answer (Eq. 7), or nothing."""
    takes_shards: ClassVar[bool] = True
    """Whether it can train beside FSDP or DeepSpeed, which split the weights."""
    options: ClassVar[Mapping[str, float]] = {}
    """Options that only this method has, with their defaults; the setting `method_options` changes them."""

    def __init__(self, args: "RAFTConfig"):
        self.args = args
        self.option = {**self.options, **(args.method_options or {})}

    @classmethod
    def check_options(cls, given: Mapping[str, object]) -> None:
        """ConfigError for an unknown option, or a value that is not a number of at least 0."""
        for key, value in given.items():
            if key not in cls.options:
                known = ", ".join(cls.options) or "none"
                raise ConfigError(f"method_options: expected options of {cls.name!r} ({known}), found {key!r}")
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
                raise ConfigError(f"method_options: {key}: expected a number of at least 0, found {value!r}")

    def begin(self, model: "nn.Module", *, sharded: bool) -> None:
        """Called before training: chooses the parameters to train, copies what is needed later.

        model: as in `penalty` and `finish`, with its LoRA adapters if it has any. sharded: FSDP or DeepSpeed splits the
        weights. ConfigError if the method does not support the model.
        """

    def penalty(self, model: "nn.Module") -> "Tensor | None":
        """A scalar that is added to the loss once per optimizer step, or None."""
        return None

    def finish(self, model: "nn.Module") -> None:
        """Changes the trained weights in place, after training."""

    @property
    def finishes_on_disk(self) -> bool:
        """Whether a saved model must go through `finish_saved`."""
        return False

    def finish_saved(self, folder: Path) -> None:
        """Changes a saved model on disk, for methods that need whole weights when FSDP or DeepSpeed has split them.
        Called on the rank that saves."""
