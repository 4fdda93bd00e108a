"""Tiny random checkpoints with a tokenizer and a chat template, made in well under a second."""

from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

PAD, END_OF_TEXT, START, END = "<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (PAD, END_OF_TEXT, START, END)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# 4 heads of 32: the smallest head that vLLM's CPU attention takes.
_SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    # Five times the usual spread: logits lie far apart, so engines that round differently agree on the best token.
    "initializer_range": 0.1,
}
# Qwen2 is here for its biases, Phi-3 for projections that are fused in the checkpoint, Qwen3-MoE for its experts.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "smollm3": {
        "model_type": "smollm3",
        "tie_word_embeddings": True,
        "num_hidden_layers": 4,
        "no_rope_layers": [1, 1, 1, 0],
        "no_rope_layer_interval": 4,
    },
    "phi3": {"model_type": "phi3", "tie_word_embeddings": False},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "tie_word_embeddings": False,
        "head_dim": 32,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
    },
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over all bytes and all pairs of lower-case letters: 936 tokens, and no text is lost."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in ascii_lowercase for b in ascii_lowercase]
    pieces = [*SPECIAL, *alphabet, *("".join(pair) for pair in pairs)]
    bpe = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=pairs))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def build(
    family: str, path: str | Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any
) -> Path:
    """Writes a random checkpoint of `family` (a key of FAMILIES) with its tokenizer into `path` and gives `path` back.

    `overrides` replace fields of the model's configuration. The generation configuration names two EOS ids, as many do.
    """
    path = Path(path)
    tokens = tokenizer()
    fields = _SHAPE | FAMILIES[family] | {"vocab_size": len(tokens), "bos_token_id": None} | overrides
    ends = [tokens.convert_tokens_to_ids(END), tokens.convert_tokens_to_ids(END_OF_TEXT)]
    config = AutoConfig.for_model(**fields, eos_token_id=ends[0], pad_token_id=tokens.pad_token_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        for name, parameter in model.named_parameters():
            if name.endswith(
                "bias"
            ):  # zero after the usual initialisation, and then a test could not see one that is lost
                torch.nn.init.normal_(parameter, std=0.5)
    model.generation_config.eos_token_id = ends
    model.generation_config.pad_token_id = tokens.pad_token_id
    model.save_pretrained(path)
    tokens.save_pretrained(path)
    return path
