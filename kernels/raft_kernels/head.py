"""An output head, and the logits of a chunk of tokens: in fp32 (fp64 for fp64), whatever dtype the head has.

    y = hidden @ weight.T + bias,  z = softcap * tanh(logit_scale * y / softcap)  or, with no cap,  z = logit_scale * y

Everything that needs whole rows of logits goes through `Head.walk`: one [tokens, width] buffer of a constant number of
elements, whatever N and V, is used for one chunk of tokens after the other.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .budgets import Budgets, current

ALL = slice(None)
# dloss by hidden, weight and bias, where they are needed.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


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
    """As `masked`. On a CPU, whose products read these rows of the head without checking bounds, ids outside the
    vocabulary are an error; on a GPU that check would make the host wait for the device."""
    ids = masked(indices, mask, rows)
    if ids.device.type == "cpu" and ids.numel():
        low, high = (int(x) for x in torch.aminmax(ids))
        if low < 0 or high >= vocab:
            raise ValueError(f"topk_kl: teacher.indices lie in {low}..{high}, the student's ids in 0..{vocab - 1}")
    return ids


@dataclass(frozen=True)
class Head:
    """An output head: its parameters, and how products with it are computed."""

    weight: Tensor  # (>= vocab, H)
    bias: Tensor | None  # (>= vocab,)
    vocab: int  # rows that are tokens; the rest is padding
    logit_scale: float
    softcap: float | None
    operands: torch.dtype  # what hidden states and weights are rounded to before a product
    backend: str = "torch"
    budgets: Budgets = field(default_factory=current)

    @property
    def dtype(self) -> torch.dtype:
        """Of logits and sums: fp32, or fp64 for fp64."""
        return accumulate_dtype(self.operands)

    @property
    def converts(self) -> bool:
        """Whether rows have to be converted before a product. A GPU multiplies bf16 and fp16 as they are."""
        half_product = self.weight.device.type == "cuda" and self.operands != torch.float64
        return self.weight.dtype != self.operands or (self.operands != self.dtype and not half_product)

    def operand(self, x: Tensor) -> Tensor:
        """x rounded to `operands`, in the dtype that the product takes. A CPU would round products of bf16 and fp16 to
        those, so that it multiplies them in fp32."""
        x = x.to(self.operands)
        return x if x.device.type == "cuda" else x.to(self.dtype)

    def gradient_operand(self, d: Tensor) -> Tensor:
        """Gradients of logits as an operand: in bf16 on a GPU if the other operand is; not in fp16, which could
        underflow."""
        return d.to(self.operands) if d.device.type == "cuda" and self.operands == torch.bfloat16 else d

    def slices(self) -> list[slice]:
        """Slices of the rows; more than one only if rows have to be converted."""
        budget = self.budgets.cuda_cast if self.weight.is_cuda else self.budgets.cpu_cast
        step = max(1, budget // self.weight.shape[1]) if self.converts else self.vocab
        return [slice(i, min(i + step, self.vocab)) for i in range(0, self.vocab, step)]

    def walk(
        self,
        hidden: Tensor,  # (N, H)
        width: int | None = None,
        *,
        teacher: bool = False,
        least: int = 1,
    ) -> Iterator[tuple[slice, Tensor]]:
        """Pairs of a slice of the N tokens and an empty buffer (its tokens, width). All buffers share their memory.

        width: of the buffer, by default the vocabulary. teacher: whether the budget is the larger one that a teacher
        has on a GPU. least: the fewest tokens of a slice (if there are as many), even if they exceed the budget.
        """
        n, width = len(hidden), self.vocab if width is None else width
        cuda = self.budgets.cuda_teacher_logits if teacher else self.budgets.cuda_logits
        budget = cuda if hidden.is_cuda else self.budgets.cpu_logits
        parts = -(-n // max(least, budget // width))
        buffer = hidden.new_empty((-(-n // max(1, parts)), width), dtype=self.dtype)
        for i in range(parts):
            rows = slice(n * i // parts, n * (i + 1) // parts)
            yield rows, buffer[: rows.stop - rows.start]

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

    def backpropagate(
        self,
        d: Tensor,  # (n, V) dloss/dy
        hidden: Tensor,  # (n, H)
        need_hidden: bool,
        grad_weight: Tensor | None,  # (>= V, H) fp32 or fp64: added to
        grad_bias: Tensor | None,  # (>= V,) fp32 or fp64: added to
        add: bool = True,
    ) -> Tensor | None:  # (n, H) fp32 or fp64
        """Returns dhidden = d @ weight, and adds d.T @ hidden to dweight and the sum of d over tokens to dbias.
        Without `add` dweight is overwritten."""
        if grad_bias is not None:
            grad_bias[: self.vocab] += d.sum(0)
        d = self.gradient_operand(d)
        if grad_weight is not None:
            product(d.t(), self.operand(hidden), grad_weight[: self.vocab], add=add)
        if not need_hidden:
            return None
        grad_hidden = d.new_empty(hidden.shape, dtype=self.dtype)
        for i, rows in enumerate(self.slices()):
            product(d[:, rows], self.operand(self.weight[rows]), grad_hidden, add=i > 0)
        return grad_hidden
