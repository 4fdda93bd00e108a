"""Decoding with keys and values in place, so that a GPU can repeat one recorded step.

transformers' own loop asks the host for some thousand launches a token, whatever the model does with them. Here a step
changes nothing but tensors that stay where they are, so it is recorded once (a CUDA graph) and repeated.
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from transformers import StaticCache
from transformers.cache_utils import Cache, StaticLayer

log = logging.getLogger(__name__)

EVERY = 16  # tokens between two looks at whether all have ended, for which the host waits
BY_HAND = 2  # steps before the recording: the first ones load kernels and choose them
_ALIGNED = 16  # places: SDPA would copy a mask of another width in every layer

Pick = Callable[[Tensor, Tensor], Tensor]  # scores [B, V] float32, the tokens made so far [1] int64 -> tokens [B] int64

_not_recorded: WeakSet[Any] = WeakSet()  # models whose step waits for the host


def can_decode(model: Any) -> bool:
    """Whether this is a model that `decode` is for: whole on one GPU, with SDPA, and every layer sees all that came
    before."""
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1 or devices.pop().type != "cuda" or torch.distributed.is_initialized():
        return False
    return model not in _not_recorded and sees_all(model.config)


def sees_all(config: Any) -> bool:
    """Whether every layer takes a mask as SDPA does, and has all keys and values in a cache that counts them on
    the device."""
    text = config.get_text_config(decoder=True)
    if text._attn_implementation != "sdpa" or getattr(text, "alibi", False):
        return False
    try:
        layers = StaticCache(config=config, max_cache_len=1).layers
    except Exception:  # noqa: BLE001  # a configuration without layer types that it knows
        return False
    # Older caches count on the host, which a recording would not see.
    return all(
        type(layer) is StaticLayer and isinstance(getattr(layer, "cumulative_length", None), Tensor) for layer in layers
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

    n is at most `max_tokens`, less where every row has come to one of `stop` before; what follows that token in a row
    means nothing. On a CPU every step is called, with the same result.
    """
    loop = _Loop(model, input_ids, attention_mask, max_tokens, pick)
    loop.prefill()
    step, ends = loop.step, torch.tensor(sorted(stop), device=input_ids.device)
    records = _is_on_gpu(input_ids) and model not in _not_recorded
    for made in range(1, max_tokens):
        if made % EVERY == 0 and stop and torch.isin(loop.tokens[:, :made], ends).any(1).all():
            return loop.tokens[:, :made]
        if records and made == BY_HAND:
            records = not _waits(step)  # which takes the step
            if not records:
                log.warning("%s waits for the host in every step: generating without a recording", type(model).__name__)
                _not_recorded.add(model)
            continue
        if records and made == BY_HAND + 1:
            step = _recorded(step, model, input_ids.device)
        step()
    return loop.tokens


def _is_on_gpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


class _Loop:
    """The state between two tokens, all of it in tensors that keep their places."""

    def __init__(self, model: Any, input_ids: Tensor, attention_mask: Tensor, max_tokens: int, pick: Pick):
        rows, width = input_ids.shape
        places = -(-(width + max_tokens) // _ALIGNED) * _ALIGNED
        self._model, self._pick, self._width = model, pick, width
        self._prompt = input_ids
        layers = len(StaticCache(config=model.config, max_cache_len=1).layers)
        self._cache = Cache(layers=[_Layer(max_cache_len=places) for _ in range(layers)])
        self._open = input_ids.new_zeros(rows, places, dtype=torch.bool)  # places that a new token sees
        self._open[:, :width] = attention_mask.bool()
        self._positions = (attention_mask.cumsum(1) - 1).clamp_(min=0)
        self._position = self._positions[:, -1:].clone()
        # A row may be gone on with beyond the context, for the others' sake.
        context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        self._last_position = (context or width + max_tokens) - 1
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
        self._position.add_(1).clamp_(max=self._last_position)
        self._made += 1


def _waits(step: Callable[[], None]) -> bool:
    """Does `step` once; whether it asked the device for something and waited, which no recording can."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    # Setting the mode may itself be warned of, in words that are near to these.
    return any("called a synchronizing" in str(warning.message) for warning in caught)


def _recorded(step: Callable[[], None], model: Any, device: torch.device) -> Callable[[], None]:
    """`step` as a CUDA graph; itself, the reason logged, where that fails."""
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    stream, before = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    try:
        # Threads of others (of a loader that pins memory) may go on meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            step()
    except RuntimeError as error:
        log.warning("generating without a recording of %s: %s", type(model).__name__, str(error).partition("\n")[0])
        _not_recorded.add(model)
        # torch leaves both as they were within.
        torch.cuda.set_stream(before)
        with suppress(AttributeError, RuntimeError):
            torch._C._cuda_endAllocateToPool(before.device_index, pool)
        return step
    return graph.replay
