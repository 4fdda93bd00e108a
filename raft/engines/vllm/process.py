"""vLLM in the process of the training: how it starts and ends there without changing what the training relies on."""

import contextlib
import gc
import importlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from raft.engines.host import undisturbed
from raft.engines.vllm.sharing import CannotShare
from raft.errors import EngineError
from raft.progress import Progress, lasting_stderr

if TYPE_CHECKING:
    from vllm import LLM


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Inside this context vLLM may be imported and started. Any failure becomes an EngineError of one line.

    CannotShare passes through. vLLM's output, and its changes to the random states and the environment, are undone.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights can only be shared within one process
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it would report to its makers over the network
    # Each request has a generator of its own, which FlashInfer's sampler does not take. And where the setting asks for
    # that sampler and its package is missing, vLLM does not start.
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    keep_process_group = keeps_process_group()
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
    if quiet:  # it warns of the missing tokenizer at every call, and we have asked for none
        logging.getLogger("vllm.renderers.base").setLevel(logging.ERROR)


def shut_down(llm: "LLM", *, keep_process_group: bool) -> None:
    """Ends a `vllm.LLM` and frees its memory. keep_process_group: as `keeps_process_group` was before its start."""
    client = llm.llm_engine.engine_core
    if not keep_process_group:
        client.shutdown()
        return
    # client.shutdown() would destroy torch's process groups too, and those belong to the training.
    client._finalizer.detach()
    client.engine_core.model_executor.shutdown()
    client.engine_core.scheduler.shutdown()
    importlib.import_module("vllm.distributed.parallel_state").destroy_model_parallel()
    gc.unfreeze()


def keeps_process_group() -> bool:
    """Whether torch's process group is the training's, so that vLLM must use it and leave it as it is."""
    return torch.distributed.is_initialized() or many_processes()


def many_processes() -> bool:
    """Whether this process is one of several that torchrun or accelerate has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def on_cpu() -> bool:
    """Whether the installed vLLM runs on the CPU. Imports vLLM."""
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


def _leave_distributed() -> None:
    """Destroys the process groups that vLLM has made in a start that failed."""
    with contextlib.suppress(ImportError):
        importlib.import_module("vllm.distributed.parallel_state").cleanup_dist_env_and_memory()
