"""Random models and a tokenizer for the examples, so small that everything runs on a CPU in seconds."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

WORDS = ["<pad>", "<end>", *(f"w{i}" for i in range(126))]
VOCAB = len(WORDS)


def tiny_qwen3(hidden_size: int, seed: int) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(config)


def pair() -> tuple[Qwen3ForCausalLM, Qwen3ForCausalLM]:
    """Student and teacher of different widths. They share only the vocabulary."""
    student, teacher = tiny_qwen3(hidden_size=32, seed=0), tiny_qwen3(hidden_size=64, seed=1)
    with torch.no_grad():
        teacher.lm_head.weight.mul_(15)  # new weights give nearly uniform distributions; a trained teacher's are peaked
    return student, teacher


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>", padding_side="left")


def sentence(length: int, seed: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    return " ".join(WORDS[i] for i in torch.randint(2, VOCAB, (length,), generator=generator).tolist())
