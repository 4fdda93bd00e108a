"""What vLLM is asked for on a GPU, which this looks at without one."""

import pytest
from transformers import LlamaConfig

from raft.engines import VLLMEngine
from raft.engines.vllm.options import llm_options
from raft.errors import ConfigError

RECORDED = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}  # tests/integration/test_vllm.py: vLLM understands it


@pytest.mark.parametrize(
    "enforce_eager, compile_model, expected",
    [(None, False, RECORDED), (False, False, RECORDED), (None, True, None), (True, False, None)],
)
def test_decoding_is_recorded_and_the_model_compiled_only_where_asked(enforce_eager, compile_model, expected):
    asked = llm_options(
        LlamaConfig(),
        512,
        cpu=False,
        max_num_seqs=8,
        gpu_memory_utilization=0.25,
        enforce_eager=enforce_eager,
        compile_model=compile_model,
        release_on_gpu=False,
        dtype="bfloat16",
    )
    assert asked.get("compilation_config") == expected
    assert asked["enforce_eager"] is bool(enforce_eager)
    assert asked["gpu_memory_utilization"] == 0.25


def test_compiling_and_recording_nothing_is_refused():
    with pytest.raises(ConfigError, match="compile_model: expected false"):
        VLLMEngine("folder", enforce_eager=True, compile_model=True)
