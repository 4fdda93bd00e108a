"""What computes a distillation loss from hidden states and heads: this library, plain torch, TRL and Liger.

`raft_kernels`, `torch` and `torch.compile` compute the same loss, on the teacher's top-K. TRL and Liger compute a
divergence over the full vocabulary: another loss, and what a user would run instead. `gemm` is the bare product of the
teacher's hidden states and head, with which `linear_topk` is compared; `gemm+topk` selects from it, a chunk of tokens
at a time.
cut-cross-entropy is not here: its loss has one label per token and no teacher, so its time compares with nothing below.
"""

import importlib.util
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.common import machine
from bench.common.failures import Unavailable, reason
from bench.kernels.cases import LABELS, TEMPERATURE, Case, Inputs, token_chunk
from raft_kernels import linear_cross_entropy, linear_topk, linear_topk_kl, topk_kl

OPS = {"linear_topk": ("forward",), "topk_kl": ("forward", "full"), "linear_topk_kl": ("forward", "full")}
CROSS_ENTROPY_OPS = {"linear_cross_entropy": ("full",)}
OURS = "raft_kernels"
TOP_K, VOCABULARY, CROSS_ENTROPY, NO_LOSS = "top-K", "full vocabulary", "labels", "none"

Call = Callable[[], object]
Bind = Callable[[Inputs], Call]


@dataclass(frozen=True)
class Provider:
    name: str
    loss: str  # over what the divergence is taken
    ops: dict[str, Bind]  # a bind does, untimed, what a user has done before, and gives the call that is timed
    full_logits: int = 0  # how many [N, V] tensors in fp32 are alive at once
    slow_start: bool = False  # unless it is named, it runs at the first sizes of a sweep only, and not with --quick
    context: Callable[[], AbstractContextManager[object]] = nullcontext  # of every call, backward pass included

    def within(self, call: Call) -> Call:
        def run() -> object:
            with self.context():
                return call()

        return call if self.context is nullcontext else run


def ops_of(case: Case) -> Mapping[str, tuple[str, ...]]:
    """Operations of a case, and the passes of each."""
    return CROSS_ENTROPY_OPS if case.regime == LABELS else OPS


def _bind(function: Callable[[Inputs], object]) -> Bind:
    return lambda x: partial(function, x)


# raft_kernels


def _raft_kernels(_device: str, _quick: bool) -> Provider:
    def loss(x: Inputs) -> Tensor:
        return linear_topk_kl(*x.parameters, x.teacher_hidden, x.teacher_weight, k=x.k, temperature=TEMPERATURE)

    return Provider(
        OURS,
        TOP_K,
        {
            "linear_topk": _bind(lambda x: linear_topk(x.teacher_hidden, x.teacher_weight, x.k)),
            "topk_kl": _bind(lambda x: topk_kl(*x.parameters, x.teacher, temperature=TEMPERATURE)),
            "linear_topk_kl": _bind(loss),
            "linear_cross_entropy": _bind(lambda x: linear_cross_entropy(*x.parameters, x.labels, reduction="sum")),
        },
    )


# Plain torch, on materialised logits


def _full_topk(x: Inputs) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        logits = (x.teacher_hidden @ x.teacher_weight.t()).float()
        values, indices = logits.topk(x.k, dim=-1)
        return indices, values


def _full_student(x: Inputs, indices: Tensor, values: Tensor) -> Tensor:
    selected = (x.student_hidden @ x.student_weight.t()).float().gather(-1, indices)
    log_q = torch.log_softmax(selected / TEMPERATURE, dim=-1)
    log_p = torch.log_softmax(values / TEMPERATURE, dim=-1)
    return TEMPERATURE**2 * (log_p.exp() * (log_p - log_q)).sum(-1)


def _full_cross_entropy(x: Inputs) -> Tensor:
    hidden, weight = x.parameters
    return F.cross_entropy((hidden @ weight.t()).float(), x.labels, reduction="sum")


FULL: dict[str, Callable[[Inputs], object]] = {
    "linear_topk": _full_topk,
    "topk_kl": lambda x: _full_student(x, x.teacher.indices.long(), x.teacher.logits),
    "linear_topk_kl": lambda x: _full_student(x, *_full_topk(x)),
    "linear_cross_entropy": _full_cross_entropy,
}


def _torch(_device: str, _quick: bool) -> Provider:
    return Provider("torch", TOP_K, {op: _bind(function) for op, function in FULL.items()}, full_logits=3)


def _torch_compile(_device: str, _quick: bool) -> Provider:
    def bind(function: Callable[[Inputs], object]) -> Bind:
        def compiled(x: Inputs) -> Call:
            _compile_each_size()
            return partial(torch.compile(function, dynamic=False), x)

        return compiled

    ops = {op: bind(function) for op, function in FULL.items()}
    return Provider("torch.compile", TOP_K, ops, full_logits=3, slow_start=True)  # compiles for a minute each time


def _compile_each_size() -> None:
    """Code for exactly the sizes at hand, as long as a sweep may last; else torch.compile goes over to code for any
    size, and after eight sizes gives up."""
    import torch._dynamo

    torch._dynamo.config.automatic_dynamic_shapes = False
    torch._dynamo.config.recompile_limit = 256


# Cross-entropy alone


def _torch_native(_device: str, _quick: bool) -> Provider:
    """torch's own with its defaults: those of its chunked way, an option, are far slower at these vocabularies."""
    if not hasattr(F, "linear_cross_entropy"):
        raise Unavailable("this torch has no F.linear_cross_entropy")

    loss = _bind(lambda x: F.linear_cross_entropy(*x.parameters, x.labels, reduction="sum"))
    return Provider("torch_native", TOP_K, {"linear_cross_entropy": loss}, full_logits=2)


def _liger_ce(device: str, _quick: bool) -> Provider:
    _need("liger_kernel", device)
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as fused

    loss = _bind(lambda x: fused(*x.parameters, x.labels, reduction="sum"))
    return Provider("liger_ce", TOP_K, {"linear_cross_entropy": loss})


# The teacher alone


def _gemm(_device: str, _quick: bool) -> Provider:
    product = _bind(lambda x: x.teacher_hidden @ x.teacher_weight.t())
    return Provider("gemm", NO_LOSS, {"linear_topk": product}, full_logits=1)


def _gemm_topk(_device: str, _quick: bool) -> Provider:
    def select(x: Inputs) -> tuple[Tensor, Tensor]:
        values, indices = [], []
        for rows in x.teacher_hidden.split(token_chunk(len(x.teacher_weight))):
            top = (rows @ x.teacher_weight.t()).topk(x.k, dim=-1)
            values.append(top.values.float())
            indices.append(top.indices)
        return torch.cat(indices), torch.cat(values)

    return Provider("gemm+topk", TOP_K, {"linear_topk": _bind(select)})


# TRL


def _trl_divergence() -> type[torch.autograd.Function]:
    _need("trl")
    try:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    except ImportError:
        # The kernels take one name from TRL's trainer, which imports much that they do not need (datasets, pandas).
        # It gathers a head that ZeRO-3 has sharded, and does nothing for any other.
        stand_in = types.ModuleType("trl.trainer.utils")
        stand_in.maybe_gather_lm_head_ctx = lambda *_: nullcontext()  # type: ignore[attr-defined]
        sys.modules["trl.trainer.utils"] = stand_in
        try:
            from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
        finally:
            del sys.modules["trl.trainer.utils"]
    return ChunkedDivergenceFunction


def _trl(_device: str, _quick: bool) -> Provider:
    function = _trl_divergence()

    def loss(x: Inputs) -> Tensor:
        teacher = (x.teacher_hidden, x.teacher_weight, None)
        hidden, weight = x.parameters
        divergence, _ = function.apply(hidden, weight, None, *teacher, 0.0, TEMPERATURE)
        return TEMPERATURE**2 * divergence

    return Provider("trl", VOCABULARY, {"linear_topk_kl": _bind(loss)})


# Liger. Its losses are means; it leaves out T^2, which costs nothing.


def _liger_jsd(_device: str, quick: bool) -> Provider:
    _need("liger_kernel")
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    if not quick:
        _compile_each_size()
    module = LigerFusedLinearJSDLoss(0.0, 1.0, beta=0.0, temperature=TEMPERATURE, compiled=not quick)

    def bind(x: Inputs) -> Call:
        labels = torch.zeros(len(x.student_hidden), dtype=torch.long, device=x.student_hidden.device)
        return lambda: module(*x.parameters, x.teacher_hidden, x.teacher_weight, labels)

    # Compiled, it is so again at every size.
    return Provider("liger_jsd", VOCABULARY, {"linear_topk_kl": bind}, slow_start=not quick)


def _liger_fused_jsd(device: str, _quick: bool) -> Provider:
    _need("liger_kernel", device)
    from liger_kernel.ops.fused_linear_jsd import LigerFusedLinearJSDFunction

    def loss(x: Inputs) -> Tensor:
        teacher = (x.teacher_hidden, x.teacher_weight)
        return LigerFusedLinearJSDFunction.apply(*x.parameters, *teacher, None, 0.0, -100, TEMPERATURE)

    return Provider("liger_fused_jsd", VOCABULARY, {"linear_topk_kl": _bind(loss)})


def _liger_kl(device: str, _quick: bool) -> Provider:
    """The teacher's probabilities are an explicit [N, V] tensor."""
    _need("liger_kernel", device)
    import liger_kernel.functional  # noqa: F401  # registers the kernels that the next one calls
    from liger_kernel.ops.fused_linear_kl_div import LigerFusedLinearKLDivFunction

    def probabilities(x: Inputs) -> Tensor:
        hidden, weight = x.teacher_hidden, x.teacher_weight
        target = hidden.new_empty(len(hidden), len(weight))
        for rows, out in zip(*(t.split(token_chunk(len(weight))) for t in (hidden, target)), strict=True):
            torch.softmax((rows @ weight.t()).div_(TEMPERATURE), dim=-1, out=out)
        return target

    def student(x: Inputs, target: Tensor) -> Tensor:
        return LigerFusedLinearKLDivFunction.apply(*x.parameters, target, None, "batchmean", -100, TEMPERATURE)

    ops: dict[str, Bind] = {
        "topk_kl": lambda x: partial(student, x, probabilities(x)),
        "linear_topk_kl": _bind(lambda x: student(x, probabilities(x))),
    }
    return Provider("liger_kl", VOCABULARY, ops, full_logits=1)


def _need(package: str, device: str = "cuda") -> None:
    """`device` is given by providers whose kernels need a GPU."""
    if importlib.util.find_spec(package) is None:
        raise Unavailable("not installed")
    if device != "cuda":
        raise Unavailable("its Triton kernels need a GPU")


MAKERS: dict[str, Callable[[str, bool], Provider]] = {
    OURS: _raft_kernels,
    "torch": _torch,
    "torch.compile": _torch_compile,
    "gemm": _gemm,
    "gemm+topk": _gemm_topk,
    "torch_native": _torch_native,
    "trl": _trl,
    "liger_ce": _liger_ce,
    "liger_jsd": _liger_jsd,
    "liger_fused_jsd": _liger_fused_jsd,
    "liger_kl": _liger_kl,
}


def is_ours(name: str) -> bool:
    """This library, or a variant of it."""
    return name.partition(":")[0] == OURS


def make(names: Iterable[str], device: str, quick: bool) -> tuple[list[Provider], dict[str, str]]:
    """The providers that can be used here, and why the others cannot."""
    found, left_out = [], {}
    for name in names:
        try:
            found.append(MAKERS[name](device, quick))
        except Exception as error:  # noqa: BLE001  # a peer may fail in any way; that is no reason to measure nothing
            left_out[name] = reason(error)
    return found, left_out


def check_room(provider: Provider, case: Case, device: str) -> None:
    """Raises Unavailable. On a CPU the system ends a process that takes too much memory, so it is checked before."""
    needed, free = provider.full_logits * case.n * case.v * 4 / 2**30, machine.free_gib()
    if device == "cpu" and free is not None and needed > 0.9 * free:
        raise Unavailable(f"needs about {needed:.0f} GiB, {free:.0f} are free")
