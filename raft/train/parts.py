"""The gradients of both losses apart, at the hidden states that enter the head, without a product more than a step
has anyway.

A loss of the head, f(h, W), is differentiated while its forward runs, on detached copies of its inputs: df/dh and
df/dW are there at once, and the backward pass only multiplies them by the number that the loss is weighted with. That
number may hang on the norms of df/dh of both losses, so lambda can be taken from them before the one backward pass
through the decoder. To the graph, and so to DDP, FSDP, DeepSpeed, gradient checkpointing, a GradScaler and a weight
that embedding and head share, it is a loss like any other. What it costs is memory, from the forward of the head to
the start of the backward pass: the head's gradient by L_KL, which else is made in the backward pass, beside that by
L_SFT.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from raft.models.language_model import OutputHead

_ROWS = 4096  # of a gradient in half precision that are scaled at once


class Ahead(NamedTuple):
    """A loss whose gradients were made in the forward pass."""

    total: Tensor  # scalar, the sum of the values; differentiable
    values: Tensor  # what the loss gave, detached
    square: Tensor  # scalar float64, detached: ||d total / d states||_2^2


def ahead(
    loss: Callable[[Tensor, OutputHead], Tensor],
    states: Tensor,  # [N, H]
    head: OutputHead,
) -> Ahead:
    """loss(states, head), summed, with its gradients made now. They are given away to the first backward pass."""

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
        by_states.requires_grad_()  # for its norm, also where the decoder is frozen
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
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError("the gradients of a loss that were made ahead are there for one backward pass only")
        return (None, *(None if g is None else _scaled_(g, upstream) for g in grads))


def _scaled_(gradient: Tensor, factor: Tensor) -> Tensor:
    """Times factor, in place. In half precision torch would round the factor first, and so lambda, for all alike."""
    if gradient.dtype in (torch.float32, torch.float64):
        return gradient.mul_(factor)
    for rows in gradient.split(_ROWS):
        rows.copy_(rows.float() * factor)
    return gradient
