"""The engine on vLLM. vLLM itself is imported when an engine starts, not with this package."""

from raft.engines.vllm.engine import VLLMEngine

__all__ = ["VLLMEngine"]
