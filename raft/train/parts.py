"""The gradient of each loss at the hidden states that enter the head, without additional matrix products.

The gradients of a loss f(h, W) of the head, df/dh and df/dW, are computed in its forward pass, on detached copies of
the inputs. The backward pass only multiplies them by the weight of the loss. So lambda can depend on the norms of df/dh
of both losses, and one backward pass through the decoder is enough. In the autograd graph it is an ordinary loss: DDP,
FSDP, DeepSpeed, gradient checkpointing, GradScaler and tied embeddings work as usual.

The cost is memory: from the forward pass of the head to the start of the backward pass, the gradients of the head's
weight for L_SFT and for L_KL are held at the same time.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from raft.models.language_model import OutputHead

_ROWS = 4096  # rows of a half-precision gradient that are scaled at a time, in fp32


class Ahead(NamedTuple):
    """A loss whose gradients were computed in the forward pass."""

    total: Tensor  # scalar, the sum of the values; differentiable
    values: Tensor  # the result of the loss function, detached
    square: Tensor  # scalar float64, detached: ||d total / d states||_2^2


def ahead(
    loss: Callable[[Tensor, OutputHead], Tensor],
    states: Tensor,  # [N, H]
    head: OutputHead,
) -> Ahead:
    """The sum of loss(states, head), its gradients computed now. Only one backward pass can use them."""

    def compute(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return loss(states, replace(head, weight=weight, bias=bias))

    return Ahead(*_Ahead.apply(compute, states, head.weight, head.bias))


class _Ahead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, compute: Callable[..., Tensor], states: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs, needs = (states, weight, bias), ctx.needs_input_grad[1:]
        leaves = [None if x is None else x.detach().requires_grad_(need) for x, need in zip(inputs, needs, strict=True)]
        by_states = leaves[0]
        assert by_states is not None
        by_states.requires_grad_()  # its norm is needed even if the decoder is frozen
        with torch.enable_grad():
            values = compute(*leaves)
            total = values.sum()
        wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        grads = dict(zip(map(id, wanted), torch.autograd.grad(total, wanted), strict=True))
        square = torch.linalg.vector_norm(grads[id(by_states)], dtype=torch.float64).square()
        ctx.grads = [grads[id(leaf)] if need else None for leaf, need in zip(leaves, needs, strict=True)]
        values = values.detach()
        ctx.mark_non_differentiable(values, square)
        return total.detach(), values, square

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: object) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError("the gradients of a loss that were made ahead are there for one backward pass only")
        return (None, *(None if g is None else _scaled_(g, upstream) for g in grads))


def _scaled_(gradient: Tensor, factor: Tensor) -> Tensor:
    """Multiplies by `factor` in place. In half precision torch would first round the factor, and with it lambda."""
    if gradient.dtype in (torch.float32, torch.float64):
        return gradient.mul_(factor)
    for rows in gradient.split(_ROWS):
        rows.copy_(rows.float() * factor)
    return gradient
