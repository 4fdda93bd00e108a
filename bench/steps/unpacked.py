"""Our trainer on padded batches, as most trainers run: nothing but packing differs, so a comparison shows its gain."""

from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from raft.models.language_model import LanguageModel
from raft.models.packing import Pack


class UnpackedModel(LanguageModel):
    """Takes a pack apart again: forwards of `rows` sequences each, padded on the right to the longest among them.

    The trainer packs the answers before the rollouts, so with `rows` of its batch these are two forwards, one of each.
    """

    def __init__(self, model: nn.Module, rows: int):
        super().__init__(model)
        self.rows = rows

    @property
    def shares_prompts(self) -> bool:
        return False

    def hidden(self, batch: Pack) -> Tensor:
        """[L, H] hidden states in the order of the pack."""
        tokens = batch.input_ids[0]
        # From the positions alone, so that this depends on no other field of a pack.
        starts = (batch.position_ids[0] == 0).nonzero()[:, 0].tolist()
        sequences = [tokens[start:end] for start, end in pairwise([*starts, len(tokens)])]
        groups = [sequences[i : i + self.rows] for i in range(0, len(sequences), self.rows)]
        return torch.cat([self._padded(group) for group in groups])

    def _padded(self, sequences: list[Tensor]) -> Tensor:
        lengths = torch.tensor([len(ids) for ids in sequences], device=sequences[0].device)
        ids = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        states = self.inner.get_decoder()(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
        return states[mask]

    def attention(self) -> Any:
        return nullcontext()


def unpack(trainer: Any, rows: int) -> None:
    """Turns a `RAFTTrainer` that has been made into one on padded batches."""
    trainer.student = UnpackedModel(trainer.student.model, rows)
    if trainer.teacher is not None:
        trainer.teacher.model = UnpackedModel(trainer.teacher.model.model, rows)
