"""Checks before the first step that the trained model can be saved."""

import tempfile

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raft.errors import ModelError
from raft.models.adapters import base_model


def check_saves(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Saves configuration and tokenizer into a temporary folder; `ModelError` if transformers cannot."""
    inner: PreTrainedModel = base_model(model)
    parts = {"config.json": inner.config, "tokenizer": tokenizer}
    if inner.can_generate():
        parts["generation_config.json"] = inner.generation_config
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts.items():
            try:
                part.save_pretrained(folder)
            except Exception as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise ModelError(
                    f"{inner.config._name_or_path or type(inner).__name__}: its {name} cannot be saved, so a trained "
                    f"model could not be either; mend it first: {reason}"
                ) from error
