"""Loss kernels for distillation on a teacher's top-K tokens: [tokens, vocabulary] logits never exist in full.

The package needs torch (and triton on a GPU), not `raft`. Start with `linear_topk` (the teacher) and `topk_kl`
(the student), or with `linear_topk_kl`, which is both in one call; `TopKDistillationLoss` is the same as a module.
"""

from .cross_entropy import linear_cross_entropy
from .dispatch import use_backend
from .linear_topk_kl import linear_topk_kl
from .metrics import TopKMetrics, topk_metrics
from .module import TopKDistillationLoss
from .topk import TopK, linear_topk
from .topk_kl import topk_kl

__version__ = "0.1.0"
__all__ = [
    "TopK",
    "TopKDistillationLoss",
    "TopKMetrics",
    "linear_cross_entropy",
    "linear_topk",
    "linear_topk_kl",
    "topk_kl",
    "topk_metrics",
    "use_backend",
]
