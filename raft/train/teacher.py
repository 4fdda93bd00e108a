"""The teacher: the frozen original model, which reads the answer and scores the rollouts of the student (Eq. 7)."""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from raft.errors import ConfigError
from raft.models.adapters import adapters_off, peft_configs
from raft.models.language_model import LanguageModel, OutputHead, check_architecture, inside_forward, is_sharded
from raft.models.packing import Span, move
from raft.train.config import RAFTConfig
from raft.train.losses import teacher_pack, teacher_topk
from raft.train.rollout import Scored
from raft_kernels import TopK

Looked = TypeVar("Looked")
_LOOKED_AT = 64  # positions at most for which `k_for` computes the whole distribution


class Teacher:
    """A frozen copy of the student, another model, or the student itself with its LoRA adapters switched off."""

    def __init__(
        self,
        student: LanguageModel,
        teacher: nn.Module | str | None = None,
        *,
        device: torch.device,
        offload: bool = False,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        """offload: keep the weights in CPU memory, except within `present`. tokenizer: the student's; needed if the two
        embeddings have different numbers of padding rows."""
        self._home: dict[nn.Parameter, Tensor] = {}  # with offload: the weights in CPU memory
        self.shares_student = teacher is None and bool(peft_configs(student.model))
        if self.shares_student:
            self.model = student
            return
        if teacher is None:
            own: nn.Module = copy.deepcopy(student.model)
        elif isinstance(teacher, nn.Module):
            if not {id(p) for p in teacher.parameters()}.isdisjoint(id(p) for p in student.model.parameters()):
                raise ConfigError(
                    "teacher: expected a model apart from the student, found one with the same parameters; "
                    "without a teacher, the student as it is now becomes one"
                )
            own = teacher
        else:
            from raft.models import load_model, load_tokenizer

            if tokenizer is not None:
                check_same_tokens(tokenizer, load_tokenizer(teacher), teacher)
            check_architecture(teacher)
            own = load_model(teacher, dtype=student.inner.dtype)
        own.requires_grad_(False).eval().to(device)
        self.model = LanguageModel(own)
        self.model.uses_packed_sdpa = student.uses_packed_sdpa
        if teacher is not None:
            self.model.check()
        self.model.tokens = student.tokens = common_tokens(student, self.model, tokenizer)
        self._device = device
        if offload and device.type == "cuda":
            self._home = {p: p.data.cpu().pin_memory() for p in own.parameters()}
            self._leave()

    @contextmanager
    def present(self) -> Iterator[None]:
        """Keeps the weights on the student's device while the context is open."""
        try:
            for parameter, home in self._home.items():
                parameter.data = move(home, self._device)
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        for parameter, home in self._home.items():  # the weights are frozen: nothing to copy back
            parameter.data = home

    def score(self, scored: Iterable[Scored], args: RAFTConfig, wrapper: nn.Module) -> list[Span]:
        """Scores every rollout that has no top K yet, and returns the spans of the packs that the teacher read.

        A forward takes as many rollouts as fit into `max_tokens_per_micro_batch`, else as many as a micro-batch has.
        """
        read: list[Span] = []
        most = args.per_device_train_batch_size * args.rollouts_per_prompt
        asked = [s for s in scored if s.teacher is None]
        alike = self.is_sharded(wrapper)  # every rank must then run the same number of forwards: one
        for chunk in [asked] if alike else _chunks(asked, args.max_tokens_per_micro_batch, most):
            top, spans = self.topk(chunk, args, wrapper)
            lengths = [len(s.completion.token_ids) for s in chunk]
            parts = [[None] * len(chunk) if t is None else t.split(lengths) for t in top]
            for s, *part in zip(chunk, *parts, strict=True):
                s.teacher = TopK(*part)
            read += spans
        return read

    def topk(self, scored: list[Scored], args: RAFTConfig, wrapper: nn.Module) -> tuple[TopK, tuple[Span, ...]]:
        """[N, K] at the N tokens of the rollouts, and the pack's spans. wrapper: the student wrapped by the trainer."""
        return self._read(scored, wrapper, lambda hidden, head: teacher_topk(hidden, head, args))

    def k_for(self, share: float, scored: list[Scored], temperature: float, wrapper: nn.Module) -> int | None:
        """The K whose tokens hold `share` of the teacher's probability at `temperature`, on average over up to 64
        positions of the rollouts.

        None without rollouts, and for sharded weights, since all ranks would have to run that forward.
        """
        if self.is_sharded(wrapper) or not scored:
            return None

        def held(
            hidden: Tensor, head: OutputHead
        ) -> Tensor:  # [N, H] -> [V]: mass of the 1, 2, ... most probable tokens
            some = torch.linspace(0, len(hidden) - 1, min(len(hidden), _LOOKED_AT), device=hidden.device).long()
            probabilities = torch.softmax(head.logits(hidden[some])[:, : head.tokens].float() / temperature, -1)
            return probabilities.sort(-1, descending=True).values.cumsum(-1).mean(0)

        masses, _ = self._read(scored, wrapper, held)
        return int((masses < share).sum()) + 1

    @torch.no_grad()
    def _read(
        self, scored: list[Scored], wrapper: nn.Module, look: Callable[[Tensor, OutputHead], Looked]
    ) -> tuple[Looked, tuple[Span, ...]]:
        """Applies `look` to the [N, H] hidden states at the tokens of the rollouts and to the head."""
        packed, positions = teacher_pack(scored, share=self.model.shares_prompts)
        device = self.model.head().weight.device
        packed, positions = packed.to(device), move(positions, device)
        if self.model.tokens is not None:
            # The student may, rarely, sample one of its padding rows; that id would be out of the teacher's range.
            packed = packed._replace(input_ids=packed.input_ids.clamp(max=self.model.tokens - 1))

        def compute() -> Looked:
            return look(self.model.hidden(packed)[positions], self.model.head())

        with adapters_off(self.model.model) if self.shares_student else nullcontext(), self.model.attention():
            self.model.model.eval()
            found = inside_forward(wrapper, self.model.model, compute) if self.is_sharded(wrapper) else compute()
        return found, packed.spans

    def is_sharded(self, wrapper: nn.Module) -> bool:
        """Whether the weights are whole only inside the wrapper's forward, which every rank must then run."""
        return self.shares_student and is_sharded(self.model.model, wrapper)


def make_teacher(
    args: RAFTConfig, student: LanguageModel, teacher: nn.Module | str | None, tokenizer: PreTrainedTokenizerBase
) -> Teacher | None:
    """None for methods that do not distil."""
    if not args.preset.distills:
        return None
    return Teacher(student, teacher, device=args.device, offload=args.teacher_offload, tokenizer=tokenizer)


def check_same_tokens(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, name: str) -> None:
    """`ConfigError` if the two tokenizers give the same token different ids. name: the teacher's."""
    ids = teacher.get_vocab()
    for token, i in student.get_vocab().items():
        if ids.get(token, i) != i:
            raise ConfigError(
                f"teacher: expected the student's tokenizer, found another in {name}: {token!r} is {ids[token]}, "
                f"not {i}"
            )


def common_tokens(
    student: LanguageModel, teacher: LanguageModel, tokenizer: PreTrainedTokenizerBase | None
) -> int | None:
    """The number of rows that both heads have, if they differ only in padding rows; None if they do not differ."""
    if teacher.vocabulary == student.vocabulary:
        return None
    common = min(teacher.vocabulary, student.vocabulary)
    last = None if tokenizer is None else max(tokenizer.get_vocab().values())
    if last is None or last >= common:
        most = "unknown" if last is None else last
        raise ConfigError(
            f"teacher: expected the student's vocabulary of {student.vocabulary} tokens, found {teacher.vocabulary}; "
            f"only rows of padding may differ in number (largest id of the student's tokenizer: {most})"
        )
    return common


def _tokens(scored: Scored) -> int:
    return len(scored.example.teacher_prompt) + len(scored.completion.token_ids) - 1


def _chunks(scored: list[Scored], budget: int | None, most: int) -> Iterator[list[Scored]]:
    """Groups of rollouts with at most `budget` tokens, or without a budget with at most `most` rollouts."""
    chunk: list[Scored] = []
    held = 0
    for s in scored:
        if chunk and (len(chunk) == most if budget is None else held + _tokens(s) > budget):
            yield chunk
            chunk, held = [], 0
        chunk.append(s)
        held += _tokens(s)
    if chunk:
        yield chunk
