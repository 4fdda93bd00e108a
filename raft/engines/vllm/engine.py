"""Generation with vLLM in this process, where it can use the parameters of the model under training as its weights."""

import contextlib
import functools
import gc
import importlib.util
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from raft.engines.base import (
    Completion,
    Drafts,
    Sampling,
    Weights,
    check_prompts,
    context_length,
    eos_ids,
    from_folder,
    request_seeds,
)
from raft.engines.host import discard_pages, fit_threads, own_random_state
from raft.engines.vllm.adapters import ServedAdapter
from raft.engines.vllm.options import Options, config_for, make_llm
from raft.engines.vllm.process import keeps_process_group, on_cpu, shut_down, starting
from raft.engines.vllm.sharing import CannotShare
from raft.engines.weights import OwnWeights
from raft.errors import ConfigError, EngineError
from raft.models.adapters import peft_configs
from raft.models.checkpoint import check_plain
from raft.progress import Call, call

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput

log = logging.getLogger(__name__)

MAX_NUM_SEQS = 128  # requests that are generated at the same time, at most, unless the caller says otherwise


class VLLMEngine:
    """Token ids in, token ids out, by a vLLM without server, worker processes and tokenizer."""

    name = "vllm"

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        max_model_len: int = 2048,
        weights: str = "auto",
        max_num_seqs: int = MAX_NUM_SEQS,
        gpu_memory_utilization: float = 0.3,
        enforce_eager: bool | None = None,
        compile_model: bool = False,
        release_on_gpu: bool = False,
    ):
        """model: a model under training, whose dtype the engine takes, or a folder, which is read once.

        weights: "auto" shares the weights; where that is not possible it copies them and logs the reason. "shared" and
        "copied" do nothing else.
        max_num_seqs: how many requests are generated at the same time.
        gpu_memory_utilization: share of the GPU's memory for weights and KV cache together.
        enforce_eager: whether vLLM does without CUDA graphs. None: only on a CPU, which has none.
        compile_model: whether vLLM compiles the model on a GPU, which takes a minute. Otherwise only the decoding step
        is recorded, as a CUDA graph.
        release_on_gpu: whether `release` frees the KV cache of a GPU too, not only that of a CPU. For that vLLM must
        allocate the weights and the cache by its own allocator, of which a process has one, until the model is freed.
        Raises ConfigError for settings, ModelError for a folder that does not load, EngineError where vLLM is missing
        or does not start.
        """
        if weights not in ("auto", "shared", "copied"):
            raise ConfigError(f"weights: expected auto, shared or copied, got {weights!r}")
        if enforce_eager and compile_model:
            raise ConfigError("compile_model: expected false beside enforce_eager, which compiles nothing")
        if isinstance(model, str | Path) and weights != "auto":
            raise ConfigError(f"weights={weights!r} needs a model under training; {model} is a path")
        if importlib.util.find_spec("vllm") is None:
            raise EngineError("vLLM is not installed; install it, or use engine 'hf'")
        self._llm: Any = None  # a vllm.LLM from the start on, None again once the engine is closed
        self._adapter: ServedAdapter | None = None
        self._released = False
        self._keeps_process_group = keeps_process_group()
        options = Options(max_num_seqs, gpu_memory_utilization, enforce_eager, compile_model, release_on_gpu)
        if isinstance(model, str | Path):
            self.tokenizer = tokenizer or from_folder(AutoTokenizer.from_pretrained, model, "a tokenizer")
            config = from_folder(AutoConfig.from_pretrained, model, "a model's config.json")
            self.max_model_len = context_length(config.get_text_config(), max_model_len)
            with starting():
                # With dtype="auto" vLLM would convert a float32 checkpoint to bfloat16.
                self._llm = make_llm(str(model), config, config.dtype or "auto", self.max_model_len, options)
            self.weights: Weights = OwnWeights("disk")
            with torch.device("meta"):  # without memory, to count the parameters, which vLLM stores in another form
                self._parameters = AutoModelForCausalLM.from_config(config).num_parameters()
            self._eos = eos_ids(
                SimpleNamespace(config=config, generation_config=_generation_config(model)), self.tokenizer
            )
        else:
            self.tokenizer = tokenizer
            config = config_for(model)
            self.max_model_len = context_length(config.get_text_config(), max_model_len)
            self._follow(model, config, weights, options)
            self._parameters = model.num_parameters()
            self._eos = eos_ids(model, self.tokenizer)
        self._vocab_size = config.get_text_config().vocab_size
        if on_cpu():
            self.release()  # vLLM has written zeros to the whole cache; it need not be in memory until it is used
        log.info("vLLM engine ready, weights: %s", self.weights.mode)

    def _follow(self, model: PreTrainedModel, config: PretrainedConfig, weights: str, options: Options) -> None:
        """Starts vLLM on the weights of a model under training.

        With LoRA the base weights are shared and each refresh passes on the adapters. Where either is not possible,
        vLLM gets a copy with the adapters merged.
        """
        check_plain(model)
        try:
            if weights != "copied" and peft_configs(model):
                self._adapter = ServedAdapter(model)
                self._start(model, config, "shared", options, **self._adapter.engine_options)
                self._adapter.refresh()
            else:
                self._start(model, config, weights, options)
        except CannotShare as error:
            if self._adapter is not None:
                self._adapter.close()
                self._adapter = None
            if weights == "shared":
                raise EngineError(f"weights='shared' is not possible: {error}") from error
            log.info("vLLM gets a copy with merged adapters at each refresh (%s)", error)
            gc.collect()  # frees what the first start allocated
            self._start(model, config, "copied", options)

    def _start(
        self, model: PreTrainedModel, config: PretrainedConfig, weights: str, options: Options, **others: object
    ) -> None:
        # vLLM reads the configuration from a folder. The model may have none, or have been changed since it was saved.
        with tempfile.TemporaryDirectory(prefix="raft-engine-") as folder, starting():
            config.save_pretrained(folder)
            from raft.engines.vllm.loader import LOAD_FORMAT, handing_over  # imports vLLM, within `starting`

            with handing_over(model, weights) as handover:
                self._llm = make_llm(
                    folder, config, model.dtype, self.max_model_len, options, load_format=LOAD_FORMAT, **others
                )
        assert handover.weights is not None
        self.weights = handover.weights

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        drafts: Drafts | None = None,  # not used so far
    ) -> list[Completion]:
        """One completion a prompt, in the order of the prompts; see `Engine.generate`."""
        if self._llm is None:
            raise EngineError("this vLLM engine was closed")
        check_prompts(prompts, self.max_model_len, self._vocab_size)
        seeds = request_seeds(sampling, len(prompts), seeds)
        if not prompts:
            return []
        self.resume()
        from vllm import SamplingParams

        shared = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "stop_token_ids": sorted({*self._eos, *sampling.stop_token_ids}),
            "detokenize": False,
        }
        # Each request its own generator. (Without any, the CPU build would also compile its sampler first, for 9 s.)
        own_seeds = seeds if sampling.temperature > 0 else [None] * len(prompts)
        told = [0 if i < sampling.logprobs else None for i in range(len(prompts))]  # 0: of the sampled token alone
        with (
            own_random_state(),
            fit_threads(self._parameters),
            self._plain_ranks(sampling),
            call(len(prompts)) as progress,
        ):
            outputs = self._llm.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts],
                [SamplingParams(**shared, seed=s, logprobs=n) for s, n in zip(own_seeds, told, strict=True)],
                use_tqdm=functools.partial(_Finished, progress),
                lora_request=self._adapter.request if self._adapter is not None else None,
            )
        return [_completion(request.outputs[0]) for request in outputs]

    def _plain_ranks(self, sampling: Sampling) -> contextlib.AbstractContextManager[object]:
        """Keeps torch from compiling the function by which vLLM ranks log-probabilities, which takes 22 s on a CPU.

        Where vLLM compiles the model, compilation must stay on; that one function then takes little beside the rest.
        """
        if not sampling.logprobs or self._llm.llm_engine.vllm_config.compilation_config.mode:
            return contextlib.nullcontext()
        return torch.compiler.set_stance("force_eager")

    def refresh(self) -> None:
        """To be called after an optimizer step. shared: nothing to copy. copied: one bulk copy. disk: no change."""
        self.weights.refresh()
        if self._adapter is not None:
            self._adapter.refresh()
        if not self._llm.reset_prefix_cache():  # cached keys and values were computed with the old weights
            raise EngineError("vLLM did not reset its prefix cache: requests are still running")

    def release(self) -> None:
        """Frees the memory of the KV cache only: vLLM's sleep mode would free the weights too, and so the student's."""
        if self._released:
            return
        if on_cpu():
            self._llm.reset_prefix_cache()
            self._llm.collective_rpc(lambda worker: discard_pages(worker.model_runner.kv_caches))
        elif self._llm.model_config.enable_sleep_mode:
            self._llm.sleep(level=0)  # pauses the scheduler, which the next call requires, and frees nothing
            self._llm.release_kv_cache_memory()
        self._released = True

    def resume(self) -> None:
        """Undoes `release`. `generate` does it by itself."""
        if self._released and not on_cpu() and self._llm.model_config.enable_sleep_mode:
            self._llm.wake_up(tags=["kv_cache", "scheduling"])
        self._released = False

    def close(self) -> None:
        """Frees everything but the model, whose parameters keep their memory. Calling it again does nothing."""
        if self._llm is None:
            return
        shut_down(self._llm, keep_process_group=self._keeps_process_group)
        self._llm = None
        if self._adapter is not None:
            self._adapter.close()
        self.weights = OwnWeights(self.weights.mode)  # the old object may hold views of the engine's storage
        gc.collect()

    @property
    def llm(self) -> Any:
        """The `vllm.LLM` that generates, for what this class has no method for; None once the engine is closed."""
        return self._llm


class _Finished(tqdm):
    """The bar that vLLM gets: it draws nothing and passes the number of finished requests on to our own progress."""

    monitor_interval = 0  # no thread that redraws bars

    def __init__(self, progress: Call, *args: object, **options: object):
        super().__init__(*args, **options | {"disable": True})
        self._progress, self._start = progress, time.monotonic()

    @property
    def format_dict(self) -> dict[str, float]:
        return {"elapsed": time.monotonic() - self._start}  # a disabled tqdm has 0, by which vLLM would divide

    def update(self, n: int = 1) -> None:
        self._progress.finished(n)


def _generation_config(path: str | Path) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:  # a checkpoint may have none
        return None


def _completion(output: "CompletionOutput") -> Completion:
    if output.finish_reason not in ("stop", "length"):
        raise EngineError(f"vLLM ended a request with {output.finish_reason!r}")
    logprobs = None
    if output.logprobs is not None:
        logprobs = [at[token].logprob for token, at in zip(output.token_ids, output.logprobs, strict=True)]
    return Completion(list(output.token_ids), output.finish_reason, logprobs)
