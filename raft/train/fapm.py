"""Forgetting-aware pruning of the task vector, after training (Huang, Cheng, Wang, EMNLP 2025, arXiv 2509.08255).

    dW = W_ft - W_pre
    S  = |dW| - mean(|W_pre|) * |dW| / |W_pre|        the mean over all of W_pre
    W  = W_pre + dW where S is among the largest, W_pre elsewhere

The second term marks down changes that are large beside the weight that they change: those are the ones that make a
model forget. Each tensor keeps the same share of its own entries, 1 - sparsity of them, rounded down.

"Each tensor" is every parameter: embeddings, the head (once where it is tied to them), and vectors such as norms and
biases too. The paper speaks of weight matrices; its authors' code (github.com/user2311717757/FAPM) goes over the whole
state dict, with a line that would leave out embeddings and norms commented out. A baseline is to be run as its authors
run it.

Where the formula leaves something open, or differs from that code by rounding:
- W_pre = 0: S is -inf, the limit of the formula: such a change is kept only where the share is not filled otherwise.
- dW = 0: S is 0, also where W_pre is 0. There is nothing to keep, but the entry counts as kept if it ranks that high.
- Equal scores: the entry that comes first in the tensor is kept, so the count is exact and every rank keeps the same.
- Scores are float32 for bf16 weights too (float64 for float64), and a kept entry is W_ft to the bit, not a rounded sum.
"""

import logging
import math
from collections.abc import Callable, Mapping
from decimal import Decimal

import torch
from torch import Tensor, nn

from raft.errors import ConfigError

logger = logging.getLogger(__name__)


def check_whole(model: nn.Module, *, sharded: bool = False) -> None:
    """Refuses models whose parameters are not the whole weights. sharded: FSDP or DeepSpeed will split them."""
    if hasattr(model, "peft_config"):
        raise ConfigError('method: "fapm" prunes the change of whole weights, expected a model without LoRA adapters')
    if sharded or any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
        raise ConfigError(
            'method: "fapm" ranks the entries of whole weights, '
            "expected none split by FSDP, DeepSpeed or tensor parallelism"
        )


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters under training, by name, in CPU memory and their own dtype. Tied ones are there once."""
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@torch.no_grad()
def prune_task_vector(model: nn.Module, base: Mapping[str, Tensor], sparsity: float = 0.9) -> None:
    """Puts all but the best-scored 1 - sparsity of each parameter's entries back to `base`, in place.

    In place, because an engine may share the storage. Beside the model and `base` it takes about 16 bytes for each
    entry of the largest parameter, on that parameter's device.
    """
    kept = total = 0
    for name, parameter in model.named_parameters():
        if name in base:
            before = base[name].to(parameter.device)
            keep = _largest(_scores(parameter, before), kept_entries(parameter.numel(), sparsity))
            parameter.copy_(torch.where(keep.view_as(parameter), parameter, before))
            kept, total = kept + kept_entries(parameter.numel(), sparsity), total + parameter.numel()
    logger.info("task vector pruned: %d of %d entries keep their change", kept, total)


def kept_entries(entries: int, sparsity: float) -> int:
    """How many of `entries` are kept. In decimals: 10 * (1 - 0.9) is 0.99... in floats and would round down to none."""
    return math.floor(entries * (1 - Decimal(str(sparsity))))


def _scores(tuned: Tensor, before: Tensor) -> Tensor:
    """S as [entries] of float32 or float64."""
    dtype = torch.promote_types(tuned.dtype, torch.float32)
    size = before.to(dtype).abs()
    change = (tuned.to(dtype) - before.to(dtype)).abs()
    scores = (change / size).mul_(-size.mean()).add_(change)
    return scores.masked_fill_(size == 0, -math.inf).masked_fill_(change == 0, 0.0).flatten()


def _largest(scores: Tensor, count: int) -> Tensor:
    """[n] bool: true for the `count` largest of [n] scores, of equal ones the first.

    By bisection over the scores' bits: a sort would hold [n] int64 indices, and neither topk nor kthvalue says which of
    equal scores it takes. 32 or 64 passes over a tensor cost less than one step of training.
    """
    keys = scores.view(torch.int32 if scores.dtype == torch.float32 else torch.int64)
    limits = torch.iinfo(keys.dtype)
    # The bits of a float are in its order once those of the negative ones below the sign are flipped.
    keys = torch.where(keys < 0, keys ^ limits.max, keys)
    lowest = _first(limits.min, limits.max, lambda key: int((keys > key).count_nonzero()) < count)
    keep, equal = keys > lowest, keys == lowest
    missing = count - int(keep.count_nonzero())
    end = _first(0, len(equal), lambda i: int(equal[:i].count_nonzero()) >= missing)
    keep[:end] |= equal[:end]
    return keep


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first number from `low` on for which `holds`, as it does for all after it; `high` if there is none before."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
