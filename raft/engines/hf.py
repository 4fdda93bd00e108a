"""Generation with plain transformers: what runs everywhere, and the yardstick for the faster engines."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from raft.engines.base import (
    Completion,
    Drafts,
    Sampling,
    cache_bytes,
    check_prompts,
    context_length,
    eos_ids,
    from_folder,
    request_seeds,
)
from raft.engines.decode import can_decode, decode
from raft.engines.host import fit_threads
from raft.engines.weights import OwnWeights
from raft.progress import Call, call

log = logging.getLogger(__name__)

LEAST_AT_ONCE, MOST_AT_ONCE = 64, 256  # requests generated together


class HFEngine:
    """Batched, left-padded generation with the model itself, so that it always sees the current weights.

    On a GPU the steps are repeated from a recording (`raft.engines.decode`) where the model allows it.

    It tells no log-probabilities, which serve to see whether an engine is the model.
    """

    name = "hf"

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        max_model_len: int = 2048,
        batch_size: int | None = None,
        recordable: bool | None = None,
    ):
        """`model`: one to generate with as it is, or a folder to load in its own dtype (on the GPU if there is one).

        batch_size: requests generated together. None: 64, and up to 256 where a sixteenth of a GPU's memory holds what
        they need, for there a token costs about as much for many as for one.
        recordable: whether tokens are made in steps that a GPU can record (`raft.engines.decode`), or by transformers'
        own loop. None: where the model is on a GPU and allows it.
        """
        if isinstance(model, str | Path):
            self.weights = OwnWeights("disk")
            tokenizer = tokenizer or from_folder(AutoTokenizer.from_pretrained, model, "a tokenizer")
            loaded = from_folder(AutoModelForCausalLM.from_pretrained, model, "a language model", dtype="auto")
            self._model = loaded.to("cuda" if torch.cuda.is_available() else "cpu")
        else:
            self.weights = OwnWeights("shared")
            self._model = model
        self.tokenizer = tokenizer
        self.max_model_len = context_length(self._model.config.get_text_config(), max_model_len)
        self._batch_size, self._recordable = batch_size, recordable
        self._eos = eos_ids(self._model, tokenizer)
        self._parameters = self._model.num_parameters()

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        drafts: Drafts | None = None,  # not used so far
    ) -> list[Completion]:
        """One completion a prompt, in the order of the prompts; see `Engine.generate`."""
        check_prompts(prompts, self.max_model_len, self._model.config.get_text_config().vocab_size)
        seeds = request_seeds(sampling, len(prompts), seeds)
        done: dict[int, Completion] = {}
        # Little padding, and what does not fit into memory fails at once.
        longest_first = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        was_training, own_config = self._model.training, self._model.generation_config
        self._model.eval()
        # generate() fills what we leave open from the model's own generation config: repetition penalty, top_k, ...
        self._model.generation_config = GenerationConfig()
        try:
            with fit_threads(self._parameters), call(len(prompts)) as progress:
                size = self._batch_size or self._fitting(max(map(len, prompts), default=0), sampling.max_tokens)
                for start in range(0, len(prompts), size):
                    chosen = longest_first[start : start + size]
                    asked, own_seeds = [prompts[i] for i in chosen], [seeds[i] for i in chosen]
                    done.update(zip(chosen, self._batch(asked, own_seeds, sampling, progress), strict=True))
        finally:
            self._model.generation_config = own_config
            self._model.train(was_training)
        return [done[i] for i in range(len(prompts))]

    def _batch(
        self, prompts: list[Sequence[int]], seeds: list[int], sampling: Sampling, progress: Call
    ) -> list[Completion]:
        """Completions of prompts that are generated together, each with its seed."""
        device = self._model.get_input_embeddings().weight.device
        on_cpu = device.type == "cpu"
        width = max(map(len, prompts))
        limits = [min(sampling.max_tokens, self.max_model_len - len(prompt)) for prompt in prompts]
        stop = {*self._eos, *sampling.stop_token_ids}
        pad = self._eos[0] if self._eos else 0  # any id will do: it is masked in the prompt and cut off the completion
        input_ids = torch.full((len(prompts), width), pad)
        attention_mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
            attention_mask[row, width - len(prompt) :] = 1
        draw = None
        if sampling.temperature > 0:
            draw = _Draw(seeds, width, max(limits), sampling, device)
        input_ids, attention_mask = input_ids.to(device), attention_mask.to(device)
        if can_decode(self._model) if self._recordable is None else self._recordable:
            pick = _likeliest if draw is None else draw.tokens
            made = decode(self._model, input_ids, attention_mask, max(limits), pick, sorted(stop))
        else:
            made = self._model.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                generation_config=GenerationConfig(
                    max_new_tokens=max(limits),
                    do_sample=False,  # _Draw has drawn already
                    eos_token_id=sorted(stop) or None,
                    pad_token_id=pad,
                    use_cache=True,
                ),
                logits_processor=LogitsProcessorList([] if draw is None else [draw]),
                # On a GPU the host would wait for every token to know, which generate avoids: there batch by batch.
                stopping_criteria=StoppingCriteriaList([_Finished(stop, limits, width, progress)] if on_cpu else []),
            )[:, width:]
        if not on_cpu:
            progress.finished(len(prompts))
        rows = made.tolist()
        return [_cut(row[:limit], stop) for row, limit in zip(rows, limits, strict=True)]

    def _fitting(self, width: int, max_tokens: int) -> int:
        """How many requests are generated together.

        It depends on the GPU's size alone: a run then groups its requests alike whatever else is in memory, and all
        ranks of a sharded model make the same number of calls.
        """
        weight = self._model.get_input_embeddings().weight
        if weight.device.type != "cuda" or torch.distributed.is_initialized():
            return LEAST_AT_ONCE
        _, total = torch.cuda.mem_get_info(weight.device)
        needed = bytes_of_request(self._model.config.get_text_config(), width, max_tokens, weight.element_size())
        return max(LEAST_AT_ONCE, min(MOST_AT_ONCE, total // 16 // needed))

    def refresh(self) -> None:
        """Nothing to do: the model is the engine."""

    def release(self) -> None:
        """Nothing to do: the KV cache lives only inside `generate`."""

    def resume(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do: a model read from a folder goes with the last reference to the engine."""


def bytes_of_request(config: PretrainedConfig, width: int, max_tokens: int, item_bytes: int) -> int:
    """What a request of `width` tokens needs beside the weights, about: keys and values, the activations of a layer and
    the mask while its prompt is read, and the sampler's float64."""
    wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    tokens = width + max_tokens
    prompt = width * (3 * wide + 6 * config.hidden_size + 2 * tokens) * item_bytes
    sampler = 4 * 8 * config.vocab_size
    return tokens * cache_bytes(config, item_bytes) + prompt + sampler


class _Finished(StoppingCriteria):
    """Tells the progress of each row that has come to its end; it stops where all have, as generate itself does."""

    def __init__(self, stop: set[int], limits: Sequence[int], prompt_width: int, progress: Call):
        self._stop, self._limits, self._prompt_width, self._progress = stop, limits, prompt_width, progress
        self._running = list(range(len(limits)))

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:  # [B, T] -> [B] bool
        made, last = input_ids.shape[1] - self._prompt_width, input_ids[:, -1].tolist()
        running = [i for i in self._running if last[i] not in self._stop and made < self._limits[i]]
        self._progress.finished(len(self._running) - len(running))
        self._running = running
        return torch.full((input_ids.shape[0],), not running, device=input_ids.device)


class _Draw(LogitsProcessor):
    """Draws the next token of each row by itself and leaves only that one possible.

    transformers samples a batch with one generator, so a request would get other tokens in other company. Here every
    request has its own row of uniform numbers, and its token is where the cumulated probabilities pass the next one.
    """

    def __init__(
        self, seeds: Sequence[int], prompt_width: int, max_tokens: int, sampling: Sampling, device: torch.device
    ):
        rows = [torch.rand(max_tokens, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
        self._uniform = torch.stack(rows).to(device)  # [B, max_tokens] float64
        self._prompt_width = prompt_width
        self._sampling = sampling

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # [B, T] int64, [B, V] float32 -> [B, V]
        made = input_ids.new_full((1,), input_ids.shape[1] - self._prompt_width)
        token = self.tokens(scores, made)
        return torch.full_like(scores, -torch.inf).scatter_(-1, token[:, None], 0.0)

    def tokens(self, scores: Tensor, made: Tensor) -> Tensor:
        """Scores [B, V] float32 and the tokens made so far [1] int64 -> the next token of each row [B] int64."""
        uniform = self._uniform.index_select(1, made)
        # float64: in float32 the rounding of a sum over 150,000 tokens would be as large as the rarer ones.
        probabilities = torch.softmax(scores.double() / self._sampling.temperature, dim=-1)
        order = None
        if self._sampling.top_p < 1:
            probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
            before = probabilities.cumsum(-1) - probabilities
            probabilities = probabilities.masked_fill(before >= self._sampling.top_p, 0.0)  # the first is always kept
        cumulated = probabilities.cumsum(-1)
        token = torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True)
        token = token.clamp_(max=scores.shape[-1] - 1)
        if order is not None:
            token = order.gather(-1, token)
        return token[:, 0]


def _likeliest(scores: Tensor, made: Tensor) -> Tensor:  # [B, V] float32, [1] int64 -> [B] int64
    return scores.argmax(-1)


def _cut(token_ids: list[int], stop: set[int]) -> Completion:
    """Ends a row at its first stop token; what generate() appended behind it is padding."""
    for position, token in enumerate(token_ids):
        if token in stop:
            return Completion(token_ids[: position + 1], "stop")
    return Completion(token_ids, "length")
