"""Sequences one behind another in one row, without padding, and an attention that keeps them apart.

transformers (5.16 and later) takes restarted position ids without an attention mask as packed sequences, and gives SDPA
a block-diagonal mask. That is exact, but time and mask grow with the square of the whole pack. `packed_sdpa` copies
each sequence into a padded row of its own, for the attention only. It then needs no mask and can use the causal
kernels, and the cost grows with the square of each sequence's length. (The padding is at the end of a row, where no
token attends to it.) Rows may also name a position of the pack more than once, so that the answer and the rollouts of a
question can share one copy of it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "raft_packed_sdpa"


class Span(NamedTuple):
    """Tokens of one sequence that are adjacent in a pack."""

    before: int  # tokens of the same sequence that come before them
    tokens: int


class Pack(NamedTuple):
    """S sequences with L tokens in all, as inputs of a model."""

    input_ids: Tensor  # [1, L] int64
    position_ids: Tensor  # [1, L] int64, from 0 in each sequence
    spans: tuple[Span, ...]  # in the order of the pack; L tokens in all
    offsets: Tensor  # [S + 1] int32: where each sequence starts, then L; meaningless where prompts are shared
    rows: Tensor  # [S, longest] int64: position in the pack, 0 in the padding
    back: Tensor  # [L] int64: position in the flattened rows

    @property
    def tokens(self) -> int:
        """L, the number of tokens."""
        return self.input_ids.shape[1]

    def to(self, device: torch.device) -> "Pack":
        """The same pack with its tensors on `device`."""
        return Pack._make(move(part, device) if isinstance(part, Tensor) else part for part in self)

    def kwargs(self, model: PreTrainedModel) -> dict[str, object]:
        """Keyword arguments for the decoder of `model`, which passes unknown ones on to its attention function."""
        plain: dict[str, object] = {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": None,
            "use_cache": False,
        }
        attention = model.config._attn_implementation
        if attention == NAME:
            return plain | {"packed_rows": self.rows, "packed_back": self.back}
        if attention.startswith("flash_attention"):
            # Without them transformers takes the lengths from the position ids, and waits for the GPU in every layer.
            longest = self.rows.shape[1]
            offsets = {"cu_seq_lens_q": self.offsets, "cu_seq_lens_k": self.offsets}
            return plain | offsets | {"max_length_q": longest, "max_length_k": longest}
        return plain


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`. A copy to a GPU goes through pinned memory, so that the host does not wait for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def pack(sequences: Sequence[Sequence[int]]) -> Pack:
    """Packs sequences of token ids in their order. None may be empty."""
    return pack_turns([(ids, ()) for ids in sequences], share=False)[0]


def pack_turns(
    turns: Sequence[tuple[Sequence[int], Sequence[int]]], *, share: bool
) -> tuple[Pack, Tensor]:  # and [N] int64
    """Packs (prompt, completion) pairs; gives the pack and the positions that predict the completions' N tokens.

    No prompt may be empty. The last token of a completion predicts nothing and is left out of the pack. The positions
    are in the order of the turns. share: a prompt that several turns have is in the pack once, for all of them.
    """
    groups: dict[tuple[int, ...] | int, list[int]] = {}
    for i, (prompt, _) in enumerate(turns):
        groups.setdefault(tuple(prompt) if share else i, []).append(i)
    ids: list[int] = []
    spans: list[Span] = []
    sequences: list[Tensor] = [torch.empty(0)] * len(turns)  # of each turn, positions in the pack
    firsts: set[int] = set()
    for members in groups.values():
        firsts.add(members[0])
        prompt = turns[members[0]][0]
        shared = torch.arange(len(ids), len(ids) + len(prompt))
        ids += prompt
        spans.append(Span(0, len(prompt)))
        for i in members:
            own = turns[i][1][:-1]
            sequences[i] = torch.cat((shared, torch.arange(len(ids), len(ids) + len(own))))
            ids += own
            spans.append(Span(len(prompt), len(own)))
    longest = max(map(len, sequences))
    rows = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    positions, back = torch.empty(len(ids), dtype=torch.int64), torch.empty(len(ids), dtype=torch.int64)
    for i, sequence in enumerate(sequences):
        skip = 0 if i in firsts else len(turns[i][0])  # outputs at a shared prompt are read from its first turn's row
        column = torch.arange(skip, len(sequence))
        positions[sequence[skip:]] = column
        back[sequence[skip:]] = i * longest + column
    lengths = torch.tensor([0, *map(len, sequences)])
    predicting = [s[len(prompt) - 1 :] for s, (prompt, whole) in zip(sequences, turns, strict=True) if len(whole)]
    packed = Pack(
        input_ids=torch.tensor([ids]),
        position_ids=positions[None],
        spans=tuple(spans),
        offsets=lengths.cumsum(0).int(),
        rows=rows,
        back=back,
    )
    return packed, torch.cat(predicting) if predicting else torch.empty(0, dtype=torch.int64)


def packed_sdpa(
    module: torch.nn.Module,
    query: Tensor,  # [1, heads, L, head_dim]
    key: Tensor,  # [1, kv_heads, L, head_dim]
    value: Tensor,  # [1, kv_heads, L, head_dim]
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packed_rows: Tensor | None = None,  # [S, longest]
    packed_back: Tensor | None = None,  # [L]
    **kwargs: object,
) -> tuple[Tensor, None]:  # [1, L, heads, head_dim]
    """Causal attention within each sequence of a pack, through transformers' own SDPA function."""
    if packed_rows is None or packed_back is None:
        raise RuntimeError(f"{type(module).__name__} did not hand the pack on to its attention")
    count, longest = packed_rows.shape

    def spread(states: Tensor) -> Tensor:  # -> [S, heads, longest, head_dim]
        rows = states[0].index_select(1, packed_rows.flatten())
        return rows.unflatten(1, (count, longest)).transpose(0, 1)

    band = None
    if sliding_window is not None and longest > sliding_window:
        ahead = torch.arange(longest, device=query.device)
        distance = ahead[:, None] - ahead
        band = ((distance >= 0) & (distance < sliding_window)).expand(count, 1, longest, longest)
    out, _ = sdpa_attention_forward(
        module,
        spread(query),
        spread(key),
        spread(value),
        band,
        dropout=dropout,
        scaling=scaling,
        is_causal=band is None,
    )
    return out.flatten(0, 1).index_select(0, packed_back)[None], None


AttentionInterface.register(NAME, packed_sdpa)


@contextmanager
def packed_attention(model: PreTrainedModel, enabled: bool = True) -> Iterator[None]:
    """Inside this context a model with SDPA attention uses `packed_sdpa`; afterwards, for generation say, SDPA again.

    The backward pass must run inside too: gradient checkpointing repeats the forward pass there.
    """
    config = model.config
    if not enabled or config._attn_implementation != "sdpa":
        yield
        return
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"
