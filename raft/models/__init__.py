"""Models of transformers: loading them, their tensors, adapters, decoder and head, packed sequences, fingerprints.

The command line imports this package before any work, so neither this file nor `load` imports torch or transformers at
module level. `language_model`, `packing`, `adapters` and `checkpoint` do; import them where they are needed.
"""

from raft.models.load import check_model, check_top_k, load_model, load_tokenizer

__all__ = ["check_model", "check_top_k", "load_model", "load_tokenizer"]
