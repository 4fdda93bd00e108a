"""Decoding with keys and values in place, so that a GPU can repeat one recorded step.

transformers' own loop asks the host for some thousand launches a token: on an H100 49 ms a token for 36 layers, where
reading the weights takes 2. Here a step changes nothing but tensors that stay where they are, so it is recorded once (a
CUDA graph) and repeated.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache
from transformers.cache_utils import Cache, StaticLayer

log = logging.getLogger(__name__)

EVERY = 16  # tokens between two looks at whether all have ended, for which the host waits
BY_HAND = 2  # steps before the recording: the first ones load kernels and choose them

Pick = Callable[[Tensor, Tensor], Tensor]  # scores [B, V] float32, the tokens made so far [1] int64 -> tokens [B] int64


def can_decode(model: Any) -> bool:
    """Whether this is a model that `decode` is for: whole on one GPU, and every layer sees all that came before."""
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1 or devices.pop().type != "cuda" or torch.distributed.is_initialized():
        return False
    return model.config._attn_implementation == "sdpa" and sees_all(model.config)


def sees_all(config: Any) -> bool:
    """Whether every layer has keys and values of all tokens, in a cache that counts them on the device."""
    return all(
        # Older caches count on the host, which a recording would not see.
        type(layer) is StaticLayer and isinstance(getattr(layer, "cumulative_length", None), Tensor)
        for layer in StaticCache(config=config, max_cache_len=1).layers
    )


class _Layer(StaticLayer):
    """Keys and values in their own precisions: under autocast rotated keys are float32 and values half."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.values = self.values.to(value_states.dtype)  # type: ignore[has-type]


@torch.no_grad()
def decode(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    max_tokens: int,
    pick: Pick,
    stop: Sequence[int],
) -> Tensor:
    """input_ids, attention_mask [B, W] int64, padded on the left -> the tokens that follow [B, n] int64.

    n is at most `max_tokens`, less where every row has come to one of `stop` before; what follows that token in a row is
    of no meaning. On a CPU every step is called, with the same result.
    """
    loop = _Loop(model, input_ids, attention_mask, max_tokens, pick)
    loop.prefill()
    step, ends = loop.step, torch.tensor(sorted(stop), device=input_ids.device)
    for made in range(1, max_tokens):
        if made % EVERY == 0 and stop and torch.isin(loop.tokens[:, :made], ends).any(1).all():
            return loop.tokens[:, :made]
        if made == BY_HAND + 1 and input_ids.device.type == "cuda":
            step = _recorded(loop.step)
        step()
    return loop.tokens


class _Loop:
    """The state between two tokens, all of it in tensors that keep their places."""

    def __init__(self, model: Any, input_ids: Tensor, attention_mask: Tensor, max_tokens: int, pick: Pick):
        rows, width = input_ids.shape
        self._model, self._pick, self._width = model, pick, width
        self._prompt = input_ids
        layers = len(StaticCache(config=model.config, max_cache_len=1).layers)
        self._cache = Cache(layers=[_Layer(max_cache_len=width + max_tokens) for _ in range(layers)])
        self._open = input_ids.new_zeros(rows, width + max_tokens, dtype=torch.bool)  # places that a new token sees
        self._open[:, :width] = attention_mask.bool()
        self._positions = (attention_mask.cumsum(1) - 1).clamp_(min=0)
        self._position = self._positions[:, -1:].clone()
        self._made = input_ids.new_zeros(1)
        self._last = input_ids.new_zeros(rows, 1)
        self.tokens = input_ids.new_zeros(rows, max_tokens)

    def prefill(self) -> None:
        """The prompts, and the first token of each row."""
        width, places = self._width, self._open.shape[1]
        query = torch.arange(width, device=self._open.device)[:, None]
        key = torch.arange(places, device=self._open.device)
        # Padding sees itself: a query that sees nothing may become NaN, and NaN times a weight of zero stays NaN.
        sees = (self._open[:, None, :] & (key <= query)) | (key == query)  # [B, W, places]
        keep = {"logits_to_keep": 1} if self._model._supports_logits_to_keep() else {}
        self._forward(self._prompt, sees[:, None], self._positions, **keep)

    def step(self) -> None:
        """One more token of each row."""
        self._forward(self._last, self._open[:, None, None, :], self._position)

    def _forward(self, ids: Tensor, sees: Tensor, positions: Tensor, **keep: int) -> None:
        output = self._model(
            input_ids=ids,
            attention_mask=sees,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            **keep,
        )
        token = self._pick(output.logits[:, -1].float(), self._made)[:, None]
        self._last.copy_(token)
        self.tokens.index_copy_(1, self._made, token)
        self._open.index_fill_(1, self._made + self._width, True)
        self._position += 1
        self._made += 1


def _recorded(step: Callable[[], None]) -> Callable[[], None]:
    """`step` as a CUDA graph; itself, the reason logged, where it asks the host for something."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    except RuntimeError as error:
        log.warning("generating without a CUDA graph, which is slower: %s", str(error).partition("\n")[0])
        return step
    return graph.replay
