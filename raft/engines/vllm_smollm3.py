"""SmolLM3 for vLLM: a Llama with layers that have no rotary embedding. Imports vLLM: import it late.

vLLM itself runs SmolLM3 through its Transformers backend, and that recompiles the Hugging Face class of this very
process: the model under training, of the same class, would then fail in its forward pass.
"""

from typing import Any

from torch import Tensor, nn
from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM
from vllm.model_executor.models.utils import extract_layer_index


class _NoRope(nn.Module):
    def forward(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return query, key


class SmolLM3Attention(LlamaAttention):
    def __init__(self, config: Any, *args: Any, prefix: str = "", **kwargs: Any):
        super().__init__(config, *args, prefix=prefix, **kwargs)
        if not config.no_rope_layers[extract_layer_index(prefix)]:  # 1: with rotary embedding, 0: without
            self.rotary_emb = _NoRope()


class SmolLM3DecoderLayer(LlamaDecoderLayer):
    def __init__(self, vllm_config: Any, prefix: str = "", config: Any = None):
        super().__init__(vllm_config, prefix=prefix, config=config, attn_layer_type=SmolLM3Attention)


class SmolLM3ForCausalLM(LlamaForCausalLM):
    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=SmolLM3DecoderLayer)
