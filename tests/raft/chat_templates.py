"""Chat templates of real models, as TRL ships them, on a small tokenizer that has their control tokens."""

import re
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.tiny import SPECIAL, tokenizer

_CONTROL = re.compile(r"<\|[\w ]+\|>|<｜[^｜{}]+｜>|<\|?[a-z_]+\|>|<\|[a-z_]+>|</?(?:start|end)_of_\w+>")
# Marks of thoughts are tokens that a tokenizer keeps when it skips special ones, as in Qwen3's.
_KEPT = ("<think>", "</think>", "<tool_call>", "</tool_call>")


def with_template(name: str, *, end: str) -> PreTrainedTokenizerFast:
    """The tokenizer of `tests.tiny` with TRL's template `name`. end: text of the token that ends a turn."""
    trl = pytest.importorskip("trl", reason="TRL, which ships the chat templates, is not installed")
    file = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    if not file.is_file():
        pytest.skip(f"this TRL has no template {name}")
    template = file.read_text(encoding="utf-8")
    tokens = tokenizer()
    controls = sorted({*_CONTROL.findall(template), end} - set(SPECIAL) - set(_KEPT))
    tokens.add_tokens([AddedToken(text, special=True, normalized=False) for text in controls], special_tokens=True)
    tokens.add_tokens([AddedToken(text, special=False, normalized=False) for text in _KEPT if text in template])
    tokens.chat_template = template
    tokens.bos_token = "<|endoftext|>"
    tokens.eos_token = end
    return tokens
