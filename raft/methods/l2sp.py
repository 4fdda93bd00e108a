"""L2-SP: an L2 penalty towards the weights that training started from."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from raft.methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor, nn

    from raft.train.config import RAFTConfig


class L2SP(Method):
    """Cross-entropy on the reference answers, plus alpha / 2 * ||w - w0||^2 over all trained parameters (Eq. 1 of the
    cited paper).

    A copy of these parameters is kept on their device, and the backward pass holds their difference in float32. The
    paper chooses alpha on a validation split.
    """

    name = "l2sp"
    citation = (
        "Li, Grandvalet, Davoine, Explicit Inductive Bias for Transfer Learning with Convolutional Networks, "
        "ICML 2018, arXiv 1802.01483"
    )
    target = "raw"
    takes_shards = False
    options: ClassVar[Mapping[str, float]] = {"alpha": 0.1}

    def __init__(self, args: "RAFTConfig"):
        super().__init__(args)
        self._start: dict[str, Tensor] = {}

    def begin(self, model: "nn.Module", *, sharded: bool) -> None:
        self._start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def penalty(self, model: "nn.Module") -> "Tensor":
        squares = [
            (parameter.float() - self._start[name].to(parameter.device).float()).square().sum()
            for name, parameter in model.named_parameters()
            if name in self._start
        ]
        return self.option["alpha"] / 2 * sum(squares[1:], squares[0])
