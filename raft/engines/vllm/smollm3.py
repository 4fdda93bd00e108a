"""SmolLM3 for vLLM: a Llama in which some layers have no rotary embedding.

vLLM itself has no class for SmolLM3 and runs it through its Transformers backend, which recompiles the Hugging Face
class in this process. The model under training has that same class, and its forward pass would then fail. Like
`loader`, this module imports vLLM at module level and must be imported only when an engine starts.
"""

from torch import Tensor, nn
from transformers import PretrainedConfig
from vllm.config import VllmConfig
from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM
from vllm.model_executor.models.utils import extract_layer_index


class _NoRope(nn.Module):
    def forward(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return query, key


class SmolLM3Attention(LlamaAttention):
    def __init__(self, config: PretrainedConfig, *args: object, prefix: str = "", **kwargs: object):
        super().__init__(config, *args, prefix=prefix, **kwargs)
        if not config.no_rope_layers[extract_layer_index(prefix)]:  # despite its name, 1 is with rotary embedding
            self.rotary_emb = _NoRope()


class SmolLM3DecoderLayer(LlamaDecoderLayer):
    def __init__(self, vllm_config: VllmConfig, prefix: str = "", config: PretrainedConfig | None = None):
        super().__init__(vllm_config, prefix=prefix, config=config, attn_layer_type=SmolLM3Attention)


class SmolLM3ForCausalLM(LlamaForCausalLM):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=SmolLM3DecoderLayer)
