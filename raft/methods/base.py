"""What a training method is: a class that answers the trainer's questions about itself.

The trainer asks: which answer is trained on, does the student also learn from a teacher on its own rollouts, what does
that teacher read, which terms come on top of the loss, which parameters train, and what happens to the weights once
training has ended. A new method is one new file in this folder; `raft.methods.METHODS` finds it.
"""

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
"""Upper bound of lambda where the teacher does not see the answer and the settings name no bound.

Such a teacher reads what the student reads, and it is the student as it was at the start: L_KL begins at 0, Eq. 12
divides by it, and lambda grows without limit (into the thousands on the micro-world), so that nothing but staying the
same is learned. The bound is ours: above the 3 to 4 at which the ratio of both losses settles in the paper (Fig. 2a),
and far below such growth."""


class Method:
    """One method of training. The class says what the method is; an object of it serves one training.

    What the class attributes say can be changed by a setting of its own (`target`, `teacher_context`, `balance` of
    RAFTConfig), so that an ablation is a line of settings.
    """

    name: ClassVar[str]
    """Value of the setting `method`."""
    citation: ClassVar[str]
    target: ClassVar[Target]
    """The answer that the student is trained on, and that the teacher is shown."""
    distills: ClassVar[bool] = False
    """Whether the student also learns from the teacher on its own rollouts (Eqs. 6-10)."""
    teacher_context: ClassVar[TeacherContext] = "answer"
    """What the teacher reads beside the question: the answer (Eq. 7), or nothing."""
    options: ClassVar[Mapping[str, float]] = {}
    """Numbers of this method alone, with their defaults: keys of the setting `method_options`."""

    def __init__(self, args: "RAFTConfig"):
        self.args = args
        self.option = {**self.options, **(args.method_options or {})}

    @classmethod
    def check_options(cls, given: Mapping[str, object]) -> None:
        """ConfigError for an option that the method does not have, or that is no number of at least 0."""
        for key, value in given.items():
            if key not in cls.options:
                known = ", ".join(cls.options) or "none"
                raise ConfigError(f"method_options: expected options of {cls.name!r} ({known}), found {key!r}")
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 0:
                raise ConfigError(f"method_options: {key}: expected a number of at least 0, found {value!r}")

    def begin(self, model: "nn.Module", *, sharded: bool) -> None:
        """Called before training with the whole, untrained model: chooses the parameters that train, keeps what is needed
        later. sharded: FSDP or DeepSpeed will split the weights. ConfigError where the method cannot train it."""

    def penalty(self, model: "nn.Module") -> "Tensor | None":
        """Scalar that is added to the loss of every optimizer step once, or None."""
        return None

    def finish(self, model: "nn.Module") -> bool:
        """Changes the trained weights in place, after training. Returns whether it did."""
        return False

    def finish_saved(self, folder: Path) -> None:
        """Changes a saved model on disk: for methods that need whole weights, where the training holds parts of them."""
