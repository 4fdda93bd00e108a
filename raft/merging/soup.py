"""Model soup: the mean of several tuned models."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from raft.merging.base import Merge
from raft.merging.tensors import compute_dtype


@dataclass(frozen=True)
class Soup(Merge):
    """W = mean of W_tuned (the paper's uniform soup)."""

    name = "soup"
    citation = "Wortsman et al., Model Soups, ICML 2022, arXiv 2203.05482"
    needs_base = False
    takes_several = True

    def tensor(self, name: str, base: Tensor | None, tuned: Sequence[Tensor]) -> Tensor:
        dtype = compute_dtype(tuned[0])
        total = tuned[0].to(dtype, copy=True)
        for other in tuned[1:]:
            total += other.to(dtype)
        return total / len(tuned)
