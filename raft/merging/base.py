"""What a merge is: a rule that makes one tensor out of those of the base model and of tuned ones."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

Share = Annotated[float, "from 0 to 1"]


@dataclass(frozen=True)
class Merge:
    """A rule. Its fields are its options: shares from 0 to 1, or None where the rule has a default of its own."""

    name: ClassVar[str]
    """What `raft merge` calls it."""
    citation: ClassVar[str]
    needs_base: ClassVar[bool] = True
    most_tuned: ClassVar[float] = 1
    """Tuned models that it takes at most; math.inf: any number from two on."""

    def begin(self, names: Iterable[str]) -> None:
        """Told the names of all floating-point tensors first."""

    def tensor(self, name: str, base: Tensor | None, tuned: Sequence[Tensor]) -> Tensor:
        """The merged tensor, in the shape of those given; its dtype is cast to that of the first tuned one."""
        raise NotImplementedError


ANY = math.inf
