"""LiNeS: scales the change of each layer by a factor that grows linearly with the layer's depth."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from raft.merging.base import Merge
from raft.merging.tensors import compute_dtype, depths
from raft.settings.schema import Share


@dataclass(frozen=True)
class LiNeS(Merge):
    """W = W_base + (alpha + (1 - alpha) * d) (W_tuned - W_base), where d is the depth from 0 to 1.

    The paper's factor is alpha + beta (l - 1) / (L - 1) for layer l of L. Here beta = 1 - alpha, so the last layer
    keeps its whole change. Embeddings count as the first layer, the final norm and an untied head as the last.
    """

    name = "lines"
    citation = (
        "Wang et al., LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging, ICLR 2025, "
        "arXiv 2410.17146"
    )

    alpha: Share = 0.5
    """Share of the change that the first layer keeps."""
    _depths: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def begin(self, names: Iterable[str]) -> None:
        self._depths.update(depths(list(names)))

    def tensor(self, name: str, base: Tensor | None, tuned: Sequence[Tensor]) -> Tensor:
        assert base is not None
        dtype = compute_dtype(tuned[0])
        return base.to(dtype).lerp(tuned[0].to(dtype), self.alpha + (1 - self.alpha) * self._depths[name])
