"""Decoding in steps that a GPU can record once, as a CUDA graph, and repeat.

In transformers' own loop the host launches some thousand kernels for every token, which takes longer than the kernels
of a small model. A step here reads and writes only tensors that keep their addresses, so that it can be recorded.
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from weakref import WeakSet

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, StaticCache
from transformers.cache_utils import Cache, StaticLayer

log = logging.getLogger(__name__)

EVERY = 16  # tokens between two checks whether all rows have ended, for which the host waits
BY_HAND = 2  # steps before the recording: the first ones load and select kernels, which cannot be recorded
_ALIGNED = 16  # the cache's length is a multiple: SDPA would copy a mask of another width in every layer

Pick = Callable[[Tensor, Tensor], Tensor]  # scores [B, V] float32, the tokens made so far [1] int64 -> tokens [B] int64

_not_recorded: WeakSet[PreTrainedModel] = WeakSet()  # models whose step cannot be recorded


def can_decode(model: PreTrainedModel) -> bool:
    """Whether `decode` suits the model: complete on one GPU, SDPA attention, no sliding windows, one process."""
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1 or devices.pop().type != "cuda" or torch.distributed.is_initialized():
        return False
    return model not in _not_recorded and sees_all(model.config)


def sees_all(config: PretrainedConfig) -> bool:
    """Whether every layer attends by SDPA to all earlier tokens, and its cache keeps their number on the device."""
    text = config.get_text_config(decoder=True)
    if text._attn_implementation != "sdpa" or getattr(text, "alibi", False):
        return False
    try:
        layers = StaticCache(config=config, max_cache_len=1).layers
    except Exception:  # noqa: BLE001  # StaticCache does not know the configuration's layer types
        return False
    # Older caches keep the number in Python, where a repeated recording does not change it.
    return all(
        type(layer) is StaticLayer and isinstance(getattr(layer, "cumulative_length", None), Tensor) for layer in layers
    )


class _Layer(StaticLayer):
    """Keeps keys and values in a dtype each: under autocast rotated keys are float32 and values half precision."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.values = self.values.to(value_states.dtype)  # type: ignore[has-type]


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    max_tokens: int,
    pick: Pick,
    stop: Sequence[int],
    recorder: "Recorder | None" = None,
) -> Tensor:
    """input_ids, attention_mask [B, W] int64, padded on the left -> the tokens that follow [B, n] int64.

    n is `max_tokens`, or less where every row has had one of `stop` before; what follows such a token in its row has no
    meaning. recorder: None: on a GPU a `Recorder`; on a CPU nothing is recorded, and the result is the same.
    """
    loop = _Loop(model, input_ids, attention_mask, max_tokens, pick)
    loop.prefill()
    step, ends = loop.step, torch.tensor(sorted(stop), device=input_ids.device)
    if recorder is None and input_ids.device.type == "cuda":
        recorder = Recorder(model, input_ids.device)
    if model in _not_recorded:
        recorder = None
    for made in range(1, max_tokens):
        if made % EVERY == 0 and stop and torch.isin(loop.tokens[:, :made], ends).any(1).all():
            return loop.tokens[:, :made]
        if recorder is not None and made == BY_HAND:
            if recorder.waits(step):  # this does the step
                log.warning("%s waits for the host in every step: generating without a recording", type(model).__name__)
                _not_recorded.add(model)
                recorder = None
            continue
        if recorder is not None and made == BY_HAND + 1:
            step = recorder.recorded(step)
        step()
    return loop.tokens


class _Loop:
    """The state between two tokens, in tensors that keep their addresses."""

    def __init__(self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, max_tokens: int, pick: Pick):
        rows, width = input_ids.shape
        places = -(-(width + max_tokens) // _ALIGNED) * _ALIGNED
        self._model, self._pick, self._width = model, pick, width
        self._prompt = input_ids
        layers = len(StaticCache(config=model.config, max_cache_len=1).layers)
        self._cache = Cache(layers=[_Layer(max_cache_len=places) for _ in range(layers)])
        self._open = input_ids.new_zeros(rows, places, dtype=torch.bool)  # [B, places]: what a new token attends to
        self._open[:, :width] = attention_mask.bool()
        self._positions = (attention_mask.cumsum(1) - 1).clamp_(min=0)
        self._position = self._positions[:, -1:].clone()
        # A row that is complete goes on, because the others do, and may then exceed the model's positions.
        context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        self._last_position = (context or width + max_tokens) - 1
        self._made = input_ids.new_zeros(1)
        self._last = input_ids.new_zeros(rows, 1)
        self.tokens = input_ids.new_zeros(rows, max_tokens)

    def prefill(self) -> None:
        """Reads the prompts and makes the first token of each row."""
        width, places = self._width, self._open.shape[1]
        query = torch.arange(width, device=self._open.device)[:, None]
        key = torch.arange(places, device=self._open.device)
        # Padding attends to itself: without any key it may become NaN, which a weight of zero would not remove.
        sees = (self._open[:, None, :] & (key <= query)) | (key == query)  # [B, W, places]
        keep = {"logits_to_keep": 1} if self._model._supports_logits_to_keep() else {}
        self._forward(self._prompt, sees[:, None], self._positions, **keep)

    def step(self) -> None:
        """Makes one more token of each row."""
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


class Recorder:
    """Records steps of a model as CUDA graphs."""

    def __init__(self, model: PreTrainedModel, device: torch.device):
        self._model, self._device = model, device

    def waits(self, step: Callable[[], None]) -> bool:
        """Does `step` once and tells whether the host waited for the device in it, which cannot be recorded."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                step()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        # Setting the mode gives a warning too, with a similar text.
        return any("called a synchronizing" in str(warning.message) for warning in caught)

    def recorded(self, step: Callable[[], None]) -> Callable[[], None]:
        """`step` as a CUDA graph; where that fails, `step` itself, and the reason is logged."""
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        stream, before = torch.cuda.Stream(self._device), torch.cuda.current_stream(self._device)
        try:
            # thread_local: calls of other threads, such as a data loader's that pins memory, do not end the recording.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                step()
        except RuntimeError as error:
            name, reason = type(self._model).__name__, str(error).partition("\n")[0]
            log.warning("generating without a recording of %s: %s", name, reason)
            _not_recorded.add(self._model)
            # After an error torch leaves the recording's stream and memory pool in use.
            torch.cuda.set_stream(before)
            with suppress(AttributeError, RuntimeError):
                torch._C._cuda_endAllocateToPool(before.device_index, pool)
            return step
        return graph.replay
