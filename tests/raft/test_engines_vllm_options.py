"""What vLLM is asked for on a GPU, which this looks at without one."""

import pytest
import torch
from transformers import LlamaConfig

from raft.engines import VLLMEngine
from raft.engines.vllm.options import Options, llm_options
from raft.errors import ConfigError

RECORDED = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}  # tests/integration/test_vllm.py: vLLM understands it


@pytest.mark.parametrize(
    "enforce_eager, compile_model, expected",
    [(None, False, RECORDED), (False, False, RECORDED), (None, True, None), (True, False, None)],
)
def test_decoding_is_recorded_and_the_model_compiled_only_where_asked(enforce_eager, compile_model, expected):
    asked = llm_options(
        LlamaConfig(),
        torch.bfloat16,
        512,
        Options(8, 0.25, enforce_eager, compile_model, release_on_gpu=False),
        gpu_bytes=80 << 30,
    )
    assert asked["dtype"] == "bfloat16"
    assert asked.get("compilation_config") == expected
    assert asked["enforce_eager"] is bool(enforce_eager)
    assert asked["gpu_memory_utilization"] == 0.25


@pytest.mark.parametrize(("gib", "limited"), [(80, True), (10, False)])
def test_the_cache_of_a_gpu_is_no_larger_than_the_requests_can_use(gib, limited):
    """Llama-3.2-3B: 28 layers, 8 heads of 128 for keys and values, 16 requests of at most 1,824 tokens."""
    shape = {"num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128}
    asked = llm_options(
        LlamaConfig(hidden_size=3072, **shape),
        torch.bfloat16,
        1824,
        Options(16, 0.3, enforce_eager=None, compile_model=False, release_on_gpu=False),
        gpu_bytes=gib << 30,
    )
    tokens = 16 * 1824
    least = tokens * 28 * 2 * 8 * 128 * 2
    found = asked.get("kv_cache_memory_bytes")
    assert (least <= found < 1.05 * least) if limited else found is None  # vLLM divides a small GPU as it sees fit


def test_compiling_and_recording_nothing_is_refused():
    with pytest.raises(ConfigError, match="compile_model: expected false"):
        VLLMEngine("folder", enforce_eager=True, compile_model=True)
