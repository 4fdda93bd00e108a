"""An output head, and the logits of a chunk of tokens: in fp32 (fp64 for fp64), whatever the head is kept in.

    y = hidden @ weight.T + bias,  z = softcap * tanh(logit_scale * y / softcap)  or, with no cap,  z = logit_scale * y

Everything that needs whole rows of logits goes through `walk`: one [tokens, width] buffer of a constant number of
elements, whatever N and V, is used for one chunk of tokens after the other.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Elements of the [tokens, width] buffer. Small enough for the memory of a laptop, large enough to fill a GPU.
CPU_BUDGET = 1 << 24
CUDA_BUDGET = 1 << 27
# The teacher's on a GPU: half as many chunks read the head half as often, and its 1 GiB is gone when the student's
# backward pass takes more.
CUDA_TEACHER_BUDGET = 1 << 28
# Elements of a slice of the head that is being converted to fp32.
CAST_BUDGET = 1 << 22
CUDA_CAST_BUDGET = 1 << 27

ALL = slice(None)
# dloss by hidden, weight and bias, where they are needed.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def walk(
    n: int,
    width: int,
    like: Tensor,
    dtype: torch.dtype,
    cuda_budget: int | None = None,
    least: int = 1,
) -> Iterator[tuple[slice, Tensor]]:
    """Pairs of a slice of the n tokens and an empty buffer (its tokens, width). All buffers share their memory.

    least: tokens of a slice, where there are so many, whatever the budget.
    """
    budget = (cuda_budget or CUDA_BUDGET) if like.device.type == "cuda" else CPU_BUDGET
    parts = -(-n // max(least, budget // width))
    buffer = like.new_empty((-(-n // max(1, parts)), width), dtype=dtype)
    for i in range(parts):
        rows = slice(n * i // parts, n * (i + 1) // parts)
        yield rows, buffer[: rows.stop - rows.start]


def operand_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What both operands of a product are rounded to: as F.linear does under autocast, else the wider of the two."""
    wider = torch.promote_types(hidden.dtype, weight.dtype)
    if wider != torch.float64 and torch.is_autocast_enabled(hidden.device.type):
        return torch.get_autocast_dtype(hidden.device.type)
    return wider


def accumulate_dtype(operands: torch.dtype) -> torch.dtype:
    return torch.float64 if operands == torch.float64 else torch.float32


def product(
    a: Tensor,  # (m, r)
    b: Tensor,  # (r, n)
    out: Tensor,  # (m, n) fp32 or fp64
    add: bool = False,
) -> None:
    """out = a @ b, or out += a @ b. Sums and result have out's dtype: half-precision products are never rounded."""
    if a.dtype != b.dtype:
        a, b = a.to(out.dtype), b.to(out.dtype)
    if a.dtype == out.dtype:
        if add:
            out.addmm_(a, b)
        else:
            torch.mm(a, b, out=out)
    elif add:
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    else:
        torch.mm(a, b, out_dtype=out.dtype, out=out)


def logsumexp_(x: Tensor) -> Tensor:  # (n, V) -> (n,)
    """logsumexp of each row without a copy: x is overwritten. Rows of -inf give -inf, rows with +inf give +inf."""
    top = x.amax(-1, keepdim=True)
    top.masked_fill_(top.isinf(), 0)
    return x.sub_(top).exp_().sum(-1).log_().add_(top.squeeze(-1))


def masked(x: Tensor, mask: Tensor | None, rows: slice = ALL) -> Tensor:
    """x[rows] with 0 at masked tokens, so that nothing they hold (NaN, ids of no token) reaches a product."""
    return x[rows] if mask is None else x[rows].masked_fill(~mask[rows].view(-1, *[1] * (x.ndim - 1)), 0)


def masked_ids(indices: Tensor, mask: Tensor | None, vocab: int, rows: slice = ALL) -> Tensor:
    """As `masked`, known to be rows of the head. A CPU reads them without bounds, and need not wait to look first."""
    ids = masked(indices, mask, rows)
    if ids.device.type == "cpu" and ids.numel():
        low, high = (int(x) for x in torch.aminmax(ids))
        if low < 0 or high >= vocab:
            raise ValueError(f"topk_kl: teacher.indices lie in {low}..{high}, the student's ids in 0..{vocab - 1}")
    return ids


@dataclass(frozen=True)
class Head:
    weight: Tensor  # (>= vocab, H)
    bias: Tensor | None  # (>= vocab,)
    vocab: int  # rows that are tokens; the rest is padding
    logit_scale: float
    softcap: float | None
    operands: torch.dtype  # what hidden states and weights are rounded to before a product
    backend: str = "torch"

    @property
    def dtype(self) -> torch.dtype:
        """Of logits and sums: fp32, or fp64 for fp64."""
        return accumulate_dtype(self.operands)

    @property
    def converts(self) -> bool:
        """Whether rows have to be converted before they enter a product. A GPU multiplies halves as they are."""
        half_product = self.weight.device.type == "cuda" and self.operands != torch.float64
        return self.weight.dtype != self.operands or (self.operands != self.dtype and not half_product)

    def operand(self, x: Tensor) -> Tensor:
        """x rounded to `operands`, in the dtype that the product takes: a CPU multiplies halves only into halves."""
        x = x.to(self.operands)
        return x if x.device.type == "cuda" else x.to(self.dtype)

    def gradient_operand(self, d: Tensor) -> Tensor:
        """Gradients of logits as an operand: in bf16 on a GPU where the other operand is. fp16 could underflow."""
        return d.to(self.operands) if d.device.type == "cuda" and self.operands == torch.bfloat16 else d

    def slices(self) -> list[slice]:
        """Slices of the rows; more than one only where rows have to be converted on the way."""
        budget = CUDA_CAST_BUDGET if self.weight.is_cuda else CAST_BUDGET
        step = max(1, budget // self.weight.shape[1]) if self.converts else self.vocab
        return [slice(i, min(i + step, self.vocab)) for i in range(0, self.vocab, step)]

    def logits_(
        self,
        out: Tensor,  # (n, vocab)
        hidden: Tensor,  # (n, H)
    ) -> Tensor:
        """Fills out with z."""
        x = self.operand(hidden)
        for rows in self.slices():
            product(x, self.operand(self.weight[rows]).t(), out[:, rows])
        if self.bias is not None:
            out.add_(self.bias[: self.vocab])
        return self.transform_(out)

    def transform_(self, y: Tensor) -> Tensor:
        """y turned into z in place."""
        if self.logit_scale != 1.0:
            y.mul_(self.logit_scale)
        return y if self.softcap is None else y.div_(self.softcap).tanh_().mul_(self.softcap)

    def log_partition_(
        self,
        z: Tensor,  # (n, vocab): may be overwritten
        temperature: float,
    ) -> Tensor:  # (n,)
        """logsumexp of z / temperature."""
        if self.backend == "triton":
            from .gpu.select import logsumexp

            return logsumexp(z, self.vocab, temperature)
        return logsumexp_(z.div_(temperature))

    def by_y(self, dz: Tensor, z: Tensor | None) -> Tensor:
        """dloss/dy from dloss/dz; z may be missing where there is no soft-cap."""
        if z is None and self.logit_scale == 1.0:
            return dz
        return dz * (self.logit_scale if z is None else self.slope(z))

    def slope(self, z: Tensor) -> Tensor | float:
        """dz/dy, from z: logit_scale * (1 - (z / softcap)^2)."""
        if self.softcap is None:
            return self.logit_scale
        return (z / self.softcap).square_().neg_().add_(1).mul_(self.logit_scale)
