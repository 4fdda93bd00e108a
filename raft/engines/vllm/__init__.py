"""The engine on vLLM. vLLM itself is imported when an engine starts, not with this package."""

from raft.engines.vllm.engine import MAX_NUM_SEQS, VLLMEngine

__all__ = ["MAX_NUM_SEQS", "VLLMEngine"]
