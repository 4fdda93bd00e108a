"""What is measured: sizes, random inputs in two regimes, and what their top-K sets look like."""

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from raft_kernels import TopK

TEMPERATURE = 1.5
REGIMES = ("randn", "zipf")
LABELS = "labels"  # the regime of cross-entropy: normal logits, one label a token at random, K = 1
TILE = 128  # neighbouring tokens whose ids are united: the tile of a GEMM
CHUNK_ELEMENTS = 1 << 27  # logits that exist at once where they are computed in chunks of tokens


@dataclass(frozen=True)
class Case:
    n: int  # tokens
    h: int  # hidden size
    v: int  # vocabulary
    k: int  # ids of the teacher that are kept
    dtype: str
    regime: str

    def __str__(self) -> str:
        return f"N={self.n} H={self.h} V={self.v} K={self.k} {self.dtype} {self.regime}"


QUICK = Case(64, 32, 2048, 32, "float32", "randn")
CPU = Case(1024, 512, 65536, 512, "float32", "randn")
CUDA = Case(8192, 4096, 128256, 512, "bfloat16", "randn")
QWEN = Case(8192, 2048, 151936, 512, "bfloat16", "randn")  # the head of Qwen3-1.7B
# On a GPU the heads of Llama 3, Qwen 3 and Phi-4-mini, and hidden sizes of models of 1B to 8B.
AXES: dict[Case, dict[str, tuple[int, ...]]] = {
    QUICK: {"n": (32, 64, 128), "h": (32, 64), "v": (1024, 2048), "k": (16, 32, 64)},
    CPU: {"n": (256, 512, 1024), "h": (256, 512), "v": (32768, 65536), "k": (64, 256, 512)},
    CUDA: {"n": (2048, 8192, 32768), "h": (2048, 3072, 4096), "v": (128256, 151936, 200064), "k": (64, 512, 1024)},
}


# Cross-entropy, at vocabularies of models: SmolLM2 (49,152 ids), Llama 3, Qwen 3. Defaults of libraries that are fast
# at small vocabularies may be slow at these.
CROSS_ENTROPY: dict[Case, list[Case]] = {
    QUICK: [Case(64, 32, 2048, 1, "float32", LABELS)],
    CPU: [
        Case(n, h, v, 1, dtype, LABELS)
        for dtype in ("float32", "bfloat16")
        for n, h, v in ((330, 576, 49152), (1024, 576, 49152), (256, 1024, 128256), (256, 1024, 151936))
    ],
    CUDA: [Case(8192, 4096, 128256, 1, "bfloat16", LABELS), Case(8192, 2048, 151936, 1, "bfloat16", LABELS)],
}


def sweep(base: Case, kind: str) -> list[Case]:
    """The most telling cases first, since a time budget may cut the rest. `base` is one of AXES.

    kind "axes": `base` in both regimes, the Qwen point on a GPU, then `base` with one size changed at a time.
    kind "full": `base`, then the product of its axes.
    """
    axes = AXES[base]
    if kind == "full":
        sizes = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        cases = [base]
    else:
        sizes = [{axis: value} for axis, values in axes.items() for value in values]
        cases = [base, replace(base, regime="zipf"), *([QWEN] if base == CUDA else [])]
    return list(dict.fromkeys([*cases, *(resized(base, changed) for changed in sizes)]))


def resized(case: Case, sizes: Mapping[str, int]) -> Case:
    return Case(**{**asdict(case), **sizes})


@dataclass(frozen=True)
class Inputs:
    student_hidden: Tensor  # (N, H), requires grad
    student_weight: Tensor  # (V, H), requires grad
    teacher_hidden: Tensor  # (N, H)
    teacher_weight: Tensor  # (V, H)
    teacher: TopK  # (N, K), for the operations that take the teacher's logits as given; labels as (N, 1) ids
    union_fraction: float
    covered_mass: float

    @property
    def k(self) -> int:
        return self.teacher.indices.shape[-1]

    @property
    def labels(self) -> Tensor:
        return self.teacher.indices[:, 0].long()

    @property
    def parameters(self) -> tuple[Tensor, Tensor]:
        return self.student_hidden, self.student_weight


def make_inputs(case: Case, device: str, seed: int = 0) -> Inputs:
    """Random hidden states and heads of a student and a teacher, and the teacher's top-K.

    randn: logits are independent and normal, so two tokens share ids only by chance. The worst case for every
    algorithm that gains from shared ids, and a student that knows nothing of its teacher.
    zipf: like a language model on text. The logit of a token is -2 log(rank), for how frequent it is, plus a topic of
    standard deviation 3 that drifts over 256 tokens, plus 4 for this very position. At V = 128256 this gives an
    entropy of 1.3 nats, a top-512 that holds 97 % of the mass at T = 1.5, and 128 neighbours whose ids are together
    11 % of the vocabulary (41 % in randn). The student is the teacher, slightly disturbed.
    """
    generator = torch.Generator(device).manual_seed(seed)
    n, h, v = case.n, case.h, case.v

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    if case.regime == LABELS:
        hidden, weight = _to(normal(n, h), case), _to(normal(v, h).mul_(3 / h**0.5), case)
        ids = torch.randint(0, v, (n, 1), generator=generator, device=device, dtype=torch.int32)
        one = TopK(ids, torch.zeros(ids.shape, device=device))
        return Inputs(hidden.requires_grad_(), weight.requires_grad_(), hidden.detach(), weight.detach(), one, 0.0, 0.0)
    if case.regime == "randn":
        teacher_hidden, student_hidden = normal(n, h), normal(n, h)
        teacher_weight = _to(normal(v, h).mul_(3 / h**0.5), case)
        student_weight = _to(normal(v, h).mul_(3 / h**0.5), case)
    else:
        place = torch.arange(n, device=device) / 256
        before = place.long()
        share = (place - before).unsqueeze(1)
        topics = normal(int(before[-1]) + 2, h)
        # Square roots keep the variance of what is between two topics.
        topic = (1 - share).sqrt() * topics[before] + share.sqrt() * topics[before + 1]
        teacher_hidden = 3 * topic + 4 * normal(n, h)
        student_hidden = teacher_hidden + 0.4 * normal(n, h)
        weight = normal(v, h).div_(h**0.5)
        rank = torch.randperm(v, generator=generator, device=device) + 1
        frequency = -2 * rank.log()
        teacher_hidden[:, 0] = student_hidden[:, 0] = 1
        weight[:, 0] = frequency - frequency.mean()
        teacher_weight = _to(weight, case)
        student_weight = _to(weight.add_(normal(v, h), alpha=0.1 / h**0.5), case)
        del weight
    teacher_hidden, student_hidden = _to(teacher_hidden, case), _to(student_hidden, case)
    teacher, covered_mass = _teacher(teacher_hidden, teacher_weight, case.k)
    return Inputs(
        student_hidden.requires_grad_(),
        student_weight.requires_grad_(),
        teacher_hidden,
        teacher_weight,
        teacher,
        union_fraction(teacher.indices, v),
        covered_mass,
    )


def _to(x: Tensor, case: Case) -> Tensor:
    # A copy even where the dtype stays: what the caller does to x afterwards must not reach the result.
    return x.to(getattr(torch, case.dtype), copy=True)


def token_chunk(v: int) -> int:
    return max(1, CHUNK_ELEMENTS // v)


def _teacher(hidden: Tensor, weight: Tensor, k: int) -> tuple[TopK, float]:
    """The top-K from fp32 logits, and the share of the probability at TEMPERATURE that it holds, mean over tokens."""
    precise = weight.to(torch.promote_types(weight.dtype, torch.float32))
    found = []
    for rows in hidden.split(token_chunk(len(weight))):
        logits = rows.to(precise.dtype) @ precise.t()
        ids = logits.topk(k, dim=-1).indices.sort(-1).values
        kept = logits.gather(-1, ids)
        mass = torch.exp((kept / TEMPERATURE).logsumexp(-1) - logits.div_(TEMPERATURE).logsumexp(-1))
        found.append((ids.int(), kept, mass))
        del logits
    ids, kept, mass = (torch.cat(parts) for parts in zip(*found, strict=True))
    return TopK(ids, kept), mass.mean().item()


def union_fraction(
    ids: Tensor,  # (N, K)
    v: int,
    tile: int = TILE,
) -> float:
    """|union of the ids of a tile of neighbouring tokens| / V, mean over tiles without a last one that is not full."""
    tiles = ids.split(tile)
    full = [part for part in tiles if len(part) == tile] or tiles[:1]
    return sum(part.unique().numel() for part in full) / len(full) / v
