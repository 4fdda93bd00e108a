"""What vLLM is started with: the model's configuration and class, and the arguments of `vllm.LLM`."""

import copy
import importlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PretrainedConfig, PreTrainedModel

from raft.engines.base import cache_bytes
from raft.engines.vllm.process import many_processes, on_cpu
from raft.errors import EngineError
from raft.models.adapters import base_model

if TYPE_CHECKING:
    from vllm import LLM

log = logging.getLogger(__name__)

_GIB = 2**30
_CPU_BLOCK = 128  # tokens in a block of the KV cache on CPU (vllm/platforms/cpu.py)
_GPU_BLOCK = 64  # at least as many as in a block of any attention of a GPU: 16 to 64


@dataclass(frozen=True)
class Options:
    """How vLLM runs, whatever the model; `VLLMEngine` says what each of them does."""

    max_num_seqs: int
    gpu_memory_utilization: float
    enforce_eager: bool | None
    compile_model: bool
    release_on_gpu: bool


def make_llm(
    path: str,
    config: PretrainedConfig,
    dtype: torch.dtype | str,
    max_model_len: int,
    options: Options,
    **others: object,
) -> "LLM":
    """A `vllm.LLM` in this process, for a folder whose config.json is `config`. For the rest see `llm_options`."""
    from vllm import LLM

    _use_native_class(config.architectures)
    gpu_bytes = None if on_cpu() else torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return LLM(path, **llm_options(config, dtype, max_model_len, options, gpu_bytes, **others))


def llm_options(
    config: PretrainedConfig,
    dtype: torch.dtype | str,
    max_model_len: int,
    options: Options,
    gpu_bytes: int | None,
    **others: object,
) -> dict[str, object]:
    """The arguments of `vllm.LLM`.

    dtype: "auto" lets vLLM choose. gpu_bytes: memory of the GPU, None on a CPU; others: further arguments, as they
    are.
    """
    dtype_name = str(dtype).removeprefix("torch.")
    item_bytes = 2 if dtype_name in ("bfloat16", "float16") else 4
    bytes_a_token = cache_bytes(config.get_text_config(), item_bytes)
    arguments = others | {
        "dtype": dtype_name,
        "max_model_len": max_model_len,
        "max_num_seqs": options.max_num_seqs,
        "enforce_eager": gpu_bytes is None if options.enforce_eager is None else options.enforce_eager,
        "model_impl": "vllm",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # vLLM's neutral sampling defaults, not those of the checkpoint
        "trust_remote_code": False,
    }
    if gpu_bytes is None:
        # A seeded request whose prompt is cut into chunks crashes the CPU build ("CPU Generator does not use offset").
        arguments |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(max_model_len, 8192)}
        arguments["kv_cache_memory_bytes"] = _cpu_cache_bytes(bytes_a_token, max_model_len, options.max_num_seqs)
    else:
        arguments["gpu_memory_utilization"] = options.gpu_memory_utilization
        needed = _cache_of_all(bytes_a_token, _GPU_BLOCK, max_model_len, options.max_num_seqs)
        if needed <= options.gpu_memory_utilization / 2 * gpu_bytes:
            # vLLM would fill its share with cache that no request can use, and the training needs that memory.
            arguments["kv_cache_memory_bytes"] = needed
        arguments["enable_sleep_mode"] = options.release_on_gpu and _can_release()
        if not options.enforce_eager and not options.compile_model:
            arguments["compilation_config"] = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
    if many_processes():
        # Started by torchrun: each process has an engine for its own prompts, in the process group of the training.
        arguments["distributed_executor_backend"] = "external_launcher"
    return arguments


def config_for(model: PreTrainedModel) -> PretrainedConfig:
    """A copy of the model's configuration that says of the model what vLLM reads from it."""
    base: PreTrainedModel = base_model(model)
    config = copy.deepcopy(base.config)
    # vLLM ties the head to the embeddings if this setting is true. The model does so if both are one tensor, and the
    # setting may say something else.
    head = base.get_output_embeddings()
    config.tie_word_embeddings = head is not None and head.weight is base.get_input_embeddings().weight
    config.architectures = [type(base).__name__.removeprefix("FSDP")]  # FSDP2 puts that prefix before the class's name
    return config


def _use_native_class(architectures: Sequence[str] | None) -> None:
    """Registers vLLM's own class for the model; EngineError where vLLM has none.

    Without one vLLM would use its Transformers backend, which recompiles the Hugging Face class in this process, the
    class of the model under training. And for a class that it knows by name only, vLLM would start a second Python
    process to look at it, which takes 10 s, once a machine.
    """
    from vllm import ModelRegistry

    name = (architectures or ["a model without architectures in its config"])[0]
    if name == "SmolLM3ForCausalLM":
        from raft.engines.vllm.smollm3 import SmolLM3ForCausalLM

        found = SmolLM3ForCausalLM
    else:
        entry = ModelRegistry.models.get(name)
        if entry is None or getattr(entry, "module_name", "").endswith(".transformers"):
            raise EngineError(f"vLLM has no class of its own for {name}; use engine 'hf'")
        found = entry.load_model_cls()
    ModelRegistry.register_model(name, found)


def _cache_of_all(bytes_a_token: int, block: int, max_model_len: int, max_num_seqs: int) -> int:
    """Bytes of a KV cache for `max_num_seqs` sequences of full length. block: tokens in a block."""
    spare = 2  # vLLM keeps one block for itself
    return bytes_a_token * block * (max_num_seqs * math.ceil(max_model_len / block) + spare)


def _cpu_cache_bytes(bytes_a_token: int, max_model_len: int, max_num_seqs: int) -> int:
    """Bytes of a KV cache for `max_num_seqs` sequences of full length, but at most 1 GiB, or what one of them needs.

    vLLM writes zeros to the whole cache first, which takes 2 s a GiB. Where the user has set VLLM_CPU_KVCACHE_SPACE
    (GiB), vLLM uses that instead.
    """
    of_all, of_one = (_cache_of_all(bytes_a_token, _CPU_BLOCK, max_model_len, count) for count in (max_num_seqs, 1))
    return max(min(_GIB, of_all), of_one)


def _can_release() -> bool:
    """Whether vLLM can free the KV cache of a GPU and keep the weights; logs why not."""
    from vllm import LLM

    if not hasattr(LLM, "release_kv_cache_memory"):
        log.warning("this vLLM cannot release its KV cache alone (0.31 can): it stays in memory during the updates")
        return False
    if _allocator_in_use():
        log.warning(
            "another engine's weights are still in vLLM's pool: the KV cache stays in memory during the updates"
        )
        return False
    return True


def _allocator_in_use() -> bool:
    """Whether vLLM's own allocator, which serves one engine, still holds one's weights, perhaps a model's too."""
    try:
        allocator = importlib.import_module("vllm.device_allocator.cumem").CuMemAllocator
    except ImportError:
        return False
    return allocator.instance is not None and allocator.instance.get_current_usage() > 0
