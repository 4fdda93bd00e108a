"""The base class of merge rules: a rule computes each merged tensor from those of the base and the tuned models."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Merge(ABC):
    """A merge rule. Its dataclass fields are its options, numbers from 0 to 1."""

    name: ClassVar[str]
    """Name of the rule on the command line of `raft merge`."""
    citation: ClassVar[str]
    needs_base: ClassVar[bool] = True
    takes_several: ClassVar[bool] = False
    """Whether it takes two or more tuned models instead of one."""

    def begin(self, names: Iterable[str]) -> None:  # noqa: B027  # most rules need not know the names
        """Called once before `tensor`, with the names of all tensors."""

    @abstractmethod
    def tensor(self, name: str, base: Tensor | None, tuned: Sequence[Tensor]) -> Tensor:
        """The merged tensor, in the shape of the given ones; the caller casts it to the first tuned one's dtype."""
