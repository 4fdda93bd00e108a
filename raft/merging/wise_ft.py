"""WiSE-FT: linear interpolation between the base and the tuned weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from raft.merging.base import Merge
from raft.merging.tensors import compute_dtype
from raft.settings.schema import Share


@dataclass(frozen=True)
class WiSEFT(Merge):
    """W = (1 - alpha) W_base + alpha W_tuned."""

    name = "wise_ft"
    citation = "Wortsman et al., Robust Fine-Tuning of Zero-Shot Models, CVPR 2022, arXiv 2109.01903"

    alpha: Share = 0.5
    """Weight of the tuned model."""

    def tensor(self, name: str, base: Tensor | None, tuned: Sequence[Tensor]) -> Tensor:
        assert base is not None
        dtype = compute_dtype(tuned[0])
        return base.to(dtype).lerp(tuned[0].to(dtype), self.alpha)
