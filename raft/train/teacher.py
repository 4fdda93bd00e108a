"""The frozen original model, which scores the student's own rollouts with the answer before its eyes (Eq. 7)."""

import copy
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from raft.errors import ConfigError
from raft.train.config import RAFTConfig
from raft.train.losses import Scored, teacher_pack, teacher_topk
from raft.train.model import LanguageModel, inside_forward
from raft_kernels import TopK


class Teacher:
    """A copy of the student as it was at the start, another model, or the student itself with its LoRA adapters off."""

    def __init__(self, student: LanguageModel, teacher: nn.Module | str | None = None):
        self.shares_student = teacher is None and hasattr(student.model, "disable_adapter")
        if self.shares_student:
            self.model = student
            return
        if teacher is None:
            own: Any = copy.deepcopy(student.model)
        elif isinstance(teacher, nn.Module):
            own = teacher
        else:
            from raft.models import load_model

            own = load_model(teacher, dtype=student.inner.dtype)
        own.requires_grad_(False).eval().to(student.head().weight.device)
        self.model = LanguageModel(own)
        self.model.packs = student.packs
        if teacher is not None:
            self.model.check()
        if self.model.vocabulary != student.vocabulary:
            raise ConfigError(
                f"teacher: expected the student's vocabulary of {student.vocabulary} tokens, found {self.model.vocabulary}"
            )

    @torch.no_grad()
    def topk(self, scored: tuple[Scored, ...], args: RAFTConfig, wrapper: nn.Module) -> TopK:
        """[N, K] at every token of the rollouts. `wrapper`: the student as the trainer wrapped it, used if the weights are its own."""
        packed, positions = teacher_pack(scored)
        device = self.model.head().weight.device
        packed, positions = packed.to(device), positions.to(device)

        def compute() -> TopK:
            hidden = self.model.hidden(packed)[positions]
            return teacher_topk(hidden, self.model.head(), args)

        off = self.model.model.disable_adapter() if self.shares_student else nullcontext()
        with off, self.model.attention():
            if not self.shares_student:
                return compute()
            self.model.model.eval()
            return inside_forward(wrapper, self.model.model, compute)
