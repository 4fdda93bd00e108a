"""Everything that turns prompts into tokens, for refinement, rollouts and evaluation alike."""

import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft.engines.base import Completion, Engine, Sampling, context_length, eos_ids, request_seed
from raft.engines.hf import HFEngine
from raft.engines.vllm import MAX_NUM_SEQS, VLLMEngine
from raft.errors import ConfigError, EngineError
from raft.rendering import chat_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "MAX_NUM_SEQS",
    "Completion",
    "Engine",
    "HFEngine",
    "Sampling",
    "VLLMEngine",
    "chat_ids",
    "context_length",
    "eos_ids",
    "make_engine",
    "request_seed",
]

log = logging.getLogger(__name__)


def make_engine(
    kind: str,
    model: "PreTrainedModel | str | Path",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    max_model_len: int = 2048,
    weights: str = "auto",
    **options: Any,
) -> Engine:
    """The engine `kind` ("auto" | "vllm" | "hf") for a model under training, or for a path.

    auto: vLLM where it is installed and can run the model, else transformers, the reason logged. `options`: vLLM's.
    """
    if kind not in ("auto", "vllm", "hf"):
        raise ConfigError(f"engine: expected auto, vllm or hf, got {kind!r}")
    if kind == "vllm":
        return VLLMEngine(model, tokenizer, max_model_len=max_model_len, weights=weights, **options)
    if kind == "auto":
        if importlib.util.find_spec("vllm") is None:
            log.warning("vLLM is not installed: generating with transformers, which is slower")
        else:
            try:
                return VLLMEngine(model, tokenizer, max_model_len=max_model_len, weights=weights, **options)
            except EngineError as error:
                if weights != "auto":
                    raise
                log.warning("generating with transformers, which is slower: %s", error)
    return HFEngine(model, tokenizer, max_model_len=max_model_len)
