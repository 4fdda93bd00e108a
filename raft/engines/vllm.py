"""Generation with vLLM in this process, so that it can use the very weights that are being trained."""

import contextlib
import copy
import functools
import gc
import importlib
import importlib.util
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from raft.engines.adapters import ServedAdapter
from raft.engines.base import (
    Completion,
    Drafts,
    Sampling,
    Weights,
    cache_bytes,
    check_prompts,
    context_length,
    eos_ids,
    from_folder,
    request_seeds,
)
from raft.engines.host import discard_pages, fit_threads, own_random_state, undisturbed
from raft.engines.weights import CannotShare, OwnWeights, base_model, check_plain, peft_configs
from raft.errors import ConfigError, EngineError
from raft.progress import Call, Progress, call, lasting_stderr

log = logging.getLogger(__name__)

_GIB = 2**30
_CPU_BLOCK = 128  # tokens in a block of the KV cache on CPU (vllm/platforms/cpu.py)


class VLLMEngine:
    """vLLM without its server, its processes, its tokenizer and its text."""

    name = "vllm"

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        tokenizer: Any = None,
        *,
        max_model_len: int = 2048,
        weights: str = "auto",
        max_num_seqs: int = 128,
        gpu_memory_utilization: float = 0.3,
        enforce_eager: bool | None = None,
        compile_model: bool = False,
        release_on_gpu: bool = False,
    ):
        """`model`: the one under training (the engine takes its dtype), or a folder, read once.

        weights: "auto" shares and falls back to copying, the reason logged; "shared" and "copied" insist.
        max_num_seqs: requests that are generated at the same time.
        gpu_memory_utilization: share of the GPU for weights and cache together.
        enforce_eager: no CUDA graphs. None: on CPU, which has none.
        compile_model: vLLM compiles the model on a GPU, for a minute; by itself a step of decoding is only recorded.
        release_on_gpu: whether `release` gives back a GPU's cache. That needs vLLM's own allocator, for weights too, of
        which a process can have one for as long as the model lives. Without it `release` frees memory on CPU only.
        """
        if weights not in ("auto", "shared", "copied"):
            raise ConfigError(f"weights: expected auto, shared or copied, got {weights!r}")
        if enforce_eager and compile_model:
            raise ConfigError("compile_model: expected false beside enforce_eager, which compiles nothing")
        if isinstance(model, str | Path) and weights != "auto":
            raise ConfigError(f"weights={weights!r} needs a model under training; {model} is a path")
        if importlib.util.find_spec("vllm") is None:
            raise EngineError("vLLM is not installed; install it, or use engine 'hf'")
        self._llm: Any = None
        self._adapter: ServedAdapter | None = None
        self._released = False
        self._keeps_process_group = torch.distributed.is_initialized() or _many_processes()
        options: dict[str, Any] = {
            "max_num_seqs": max_num_seqs,
            "gpu_memory_utilization": gpu_memory_utilization,
            "enforce_eager": enforce_eager,
            "compile_model": compile_model,
            "release_on_gpu": release_on_gpu,
        }
        if isinstance(model, str | Path):
            self.tokenizer = tokenizer or from_folder(AutoTokenizer, model, "a tokenizer")
            config = from_folder(AutoConfig, model, "a model's config.json")
            # By itself, "auto", vLLM would turn a float32 checkpoint into bfloat16.
            options["dtype"] = str(config.dtype or "auto").removeprefix("torch.")
            self.max_model_len = context_length(config.get_text_config(), max_model_len)
            with _starting():
                self._llm = _make_llm(str(model), config, self.max_model_len, **options)
            self.weights: Weights = OwnWeights("disk")
            with torch.device("meta"):  # only to count: of its own parameters vLLM keeps some in other forms
                self._parameters = AutoModelForCausalLM.from_config(config).num_parameters()
            self._eos = eos_ids(
                SimpleNamespace(config=config, generation_config=_generation_config(model)), self.tokenizer
            )
        else:
            self.tokenizer = tokenizer
            config = _config_of(model)
            self.max_model_len = context_length(config.get_text_config(), max_model_len)
            options["dtype"] = str(model.dtype).removeprefix("torch.")
            self._follow(model, config, weights, options)
            self._parameters = model.num_parameters()
            self._eos = eos_ids(model, self.tokenizer)
        self._vocab_size = config.get_text_config().vocab_size
        if _on_cpu():
            self.release()  # vLLM has written zeros to all of its cache: until it is used it need not be in memory
        log.info("vLLM engine ready, weights: %s", self.weights.mode)

    def _follow(self, model: PreTrainedModel, config: PretrainedConfig, weights: str, options: dict[str, Any]) -> None:
        """Starts vLLM on the weights of a model under training. LoRA: the base is shared and the adapters are handed
        over at each refresh; where either cannot be, vLLM has a copy with the adapters merged."""
        check_plain(model)
        try:
            if weights != "copied" and peft_configs(model):
                self._adapter = ServedAdapter(model)
                self._start(model, config, "shared", options | self._adapter.engine_options)
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
            gc.collect()  # what the first start allocated
            self._start(model, config, "copied", options)

    def _start(self, model: PreTrainedModel, config: PretrainedConfig, weights: str, options: dict[str, Any]) -> None:
        # vLLM wants a folder, and the model may have none, or one that was written before the model was changed.
        with tempfile.TemporaryDirectory(prefix="raft-engine-") as folder, _starting():
            config.save_pretrained(folder)
            loader = importlib.import_module("raft.engines.vllm_loader")
            with loader.handing_over(model, weights) as handover:
                self._llm = _make_llm(folder, config, self.max_model_len, load_format=loader.LOAD_FORMAT, **options)
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

    def _plain_ranks(self, sampling: Sampling) -> contextlib.AbstractContextManager[Any]:
        """With a log-probability vLLM tells its rank, by a function that torch would compile first (22 s on a CPU).

        Where vLLM compiles the model too, that one must stay compiled, and the little function is soon made.
        """
        if not sampling.logprobs or self._llm.llm_engine.vllm_config.compilation_config.mode:
            return contextlib.nullcontext()
        return torch.compiler.set_stance("force_eager")

    def refresh(self) -> None:
        """To be called after an optimizer step. Shared: no copy. Copied: one bulk copy. Disk: no change."""
        self.weights.refresh()
        if self._adapter is not None:
            self._adapter.refresh()
        if not self._llm.reset_prefix_cache():  # cached prefixes belong to the old weights
            raise EngineError("vLLM did not reset its prefix cache: requests are still running")

    def release(self) -> None:
        """Gives back the memory of the KV cache and of nothing else: a vLLM put to sleep would free the student too."""
        if self._released:
            return
        if _on_cpu():
            self._llm.reset_prefix_cache()
            discard_pages(self._worker().model_runner.kv_caches)
        elif self._llm.model_config.enable_sleep_mode:
            self._llm.sleep(level=0)  # no sleep yet, only a halt of the scheduler, which the next call asks for
            self._llm.release_kv_cache_memory()
        self._released = True

    def resume(self) -> None:
        """Undoes `release`. `generate` does it by itself."""
        if self._released and not _on_cpu() and self._llm.model_config.enable_sleep_mode:
            self._llm.wake_up(tags=["kv_cache", "scheduling"])
        self._released = False

    def close(self) -> None:
        """Frees everything but the model, whose parameters stay where they are. Calling it again does nothing."""
        if self._llm is None:
            return
        client = self._llm.llm_engine.engine_core
        if self._keeps_process_group:
            # vLLM's own way out would take the trainer's process group with it.
            client._finalizer.detach()
            client.engine_core.model_executor.shutdown()
            client.engine_core.scheduler.shutdown()
            importlib.import_module("vllm.distributed.parallel_state").destroy_model_parallel()
            gc.unfreeze()
        else:
            client.shutdown()
        self._llm = None
        if self._adapter is not None:
            self._adapter.close()
        self.weights = OwnWeights(self.weights.mode)  # the old one may hold views of the engine's storage
        gc.collect()

    def _worker(self) -> Any:
        return self._llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker


class _Finished:
    """What vLLM takes for tqdm, whose bars it makes around requests that it adds and of those that it works on.

    It shows nothing, and tells the progress what is finished.
    """

    postfix = ""

    def __init__(self, progress: Call, iterable: Iterable[Any] = (), **_: Any):
        self._progress, self._iterable, self._start, self.n = progress, iterable, time.monotonic(), 0

    def __iter__(self) -> Iterator[Any]:
        return iter(self._iterable)

    @property
    def format_dict(self) -> dict[str, float]:
        return {"elapsed": time.monotonic() - self._start}

    def update(self, n: int = 1) -> None:
        self.n += n
        self._progress.finished(n)

    def refresh(self) -> None:
        """There is nothing to draw."""

    def close(self) -> None:
        """There is nothing to draw."""


def _make_llm(
    path: str,
    config: PretrainedConfig,
    max_model_len: int,
    *,
    max_num_seqs: int,
    gpu_memory_utilization: float,
    enforce_eager: bool | None,
    compile_model: bool,
    release_on_gpu: bool,
    dtype: str,
    **options: Any,
) -> Any:
    from vllm import LLM

    _use_native_class(config.architectures)
    cpu = _on_cpu()
    if cpu:
        # A seeded request whose prompt is cut into chunks crashes the CPU build ("CPU Generator does not use offset").
        options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(max_model_len, 8192)}
        item_bytes = 2 if dtype in ("bfloat16", "float16") else 4
        text_config = config.get_text_config()
        options["kv_cache_memory_bytes"] = _cpu_cache_bytes(text_config, item_bytes, max_model_len, max_num_seqs)
    else:
        if release_on_gpu and not hasattr(LLM, "release_kv_cache_memory"):
            log.warning("this vLLM cannot release its KV cache alone (0.31 can): it stays in memory during the updates")
            release_on_gpu = False
        if release_on_gpu and _pool_in_use():
            log.warning(
                "another engine's weights are still in vLLM's pool: the KV cache stays in memory during the updates"
            )
            release_on_gpu = False
        options |= {"gpu_memory_utilization": gpu_memory_utilization, "enable_sleep_mode": release_on_gpu}
        if not enforce_eager and not compile_model:
            options["compilation_config"] = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
    if _many_processes():
        # Started by torchrun: each process has an engine for its own prompts, on the process group of the training.
        options["distributed_executor_backend"] = "external_launcher"
    return LLM(
        path,
        dtype=dtype,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        enforce_eager=cpu if enforce_eager is None else enforce_eager,
        model_impl="vllm",
        skip_tokenizer_init=True,
        generation_config="vllm",  # nobody's defaults but ours
        trust_remote_code=False,
        **options,
    )


def _pool_in_use() -> bool:
    """vLLM's own allocator serves one engine for as long as its weights live, those that a model shares included."""
    try:
        allocator = importlib.import_module("vllm.device_allocator.cumem").CuMemAllocator
    except ImportError:
        return False
    return allocator.instance is not None and allocator.instance.get_current_usage() > 0


def _use_native_class(architectures: Sequence[str] | None) -> None:
    """Makes sure that vLLM has a class of its own for the model, and registers the class itself.

    vLLM's other way, its Transformers backend, recompiles the Hugging Face class in this process, under the model in
    training. And to look at a class that it knows by name only, vLLM starts a second Python (10 s, once a machine).
    """
    from vllm import ModelRegistry

    name = (architectures or ["a model without architectures in its config"])[0]
    if name == "SmolLM3ForCausalLM":
        found: Any = importlib.import_module("raft.engines.vllm_smollm3").SmolLM3ForCausalLM
    else:
        entry = ModelRegistry.models.get(name)
        if entry is None or getattr(entry, "module_name", "").endswith(".transformers"):
            raise EngineError(f"vLLM has no class of its own for {name}; use engine 'hf'")
        found = entry.load_model_cls()
    ModelRegistry.register_model(name, found)


def _cpu_cache_bytes(config: PretrainedConfig, item_bytes: int, max_model_len: int, max_num_seqs: int) -> int:
    """What `max_num_seqs` full sequences need, but at most 1 GiB: vLLM writes zeros to all of it first (2 s a GiB).

    VLLM_CPU_KVCACHE_SPACE (GiB), where the user has set it, takes precedence inside vLLM.
    """
    bytes_a_block = _CPU_BLOCK * cache_bytes(config, item_bytes)
    blocks_a_sequence = math.ceil(max_model_len / _CPU_BLOCK)
    spare = 2  # vLLM keeps one block for itself
    return max(
        min(_GIB, bytes_a_block * (max_num_seqs * blocks_a_sequence + spare)),
        bytes_a_block * (blocks_a_sequence + spare),
    )


def _config_of(model: PreTrainedModel) -> PretrainedConfig:
    base: Any = base_model(model)
    config = copy.deepcopy(base.config)
    # vLLM goes by the setting alone, the model by its tensors.
    config.tie_word_embeddings = _tied(base)
    config.architectures = [type(base).__name__.removeprefix("FSDP")]  # fully_shard puts that prefix in front
    return config


def _tied(model: Any) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _generation_config(path: str | Path) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:  # a checkpoint may have none
        return None


def _completion(output: Any) -> Completion:
    if output.finish_reason not in ("stop", "length"):
        raise EngineError(f"vLLM ended a request with {output.finish_reason!r}")
    logprobs = None
    if output.logprobs is not None:
        logprobs = [at[token].logprob for token, at in zip(output.token_ids, output.logprobs, strict=True)]
    return Completion(list(output.token_ids), output.finish_reason, logprobs)


def _leave_distributed() -> None:
    """Undoes vLLM's process groups after a start that failed half-way."""
    with contextlib.suppress(ImportError):
        importlib.import_module("vllm.distributed.parallel_state").cleanup_dist_env_and_memory()


def _many_processes() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """vLLM's settings, its side effects kept out of the process, and its failures as one line."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, or there is nothing to share
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it would report to its makers over the network
    # Each request has a generator of its own, which FlashInfer's sampler does not take; where the package is missing,
    # vLLM would not start for it.
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    keep_process_group = torch.distributed.is_initialized() or _many_processes()
    quiet = os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING").upper() not in ("INFO", "DEBUG")
    try:
        with (
            lasting_stderr() as stderr,
            Progress("starting vLLM", stream=stderr),
            undisturbed(quiet),
        ):
            yield
    except Exception as error:
        if not keep_process_group:
            _leave_distributed()
        if isinstance(error, EngineError | CannotShare):
            raise
        first_line = str(error).strip().partition("\n")[0]
        raise EngineError(
            f"vLLM could not start: {type(error).__name__}: {first_line} (VLLM_LOGGING_LEVEL=INFO shows its own output)"
        ) from error
    if quiet:  # it complains about what was asked for: no tokenizer, hence no EOS id
        logging.getLogger("vllm.renderers.base").setLevel(logging.ERROR)
