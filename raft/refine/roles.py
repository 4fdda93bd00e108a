"""The models of a refinement by its settings: who writes, compares and judges, each made when it is first needed."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from raft.chat.endpoint import is_endpoint
from raft.chat.pool import LOCAL, ChatPool
from raft.engines import make_engine
from raft.evaluate.likelihood import log_likelihoods
from raft.models import load_model, load_tokenizer
from raft.prompts import Message
from raft.refine.context import Models
from raft.refine.embed import load_embedder
from raft.settings import RefineSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from raft.engines import Engine


class Roles:
    """Of one process. model: folder or name of the model that is refined for."""

    def __init__(self, settings: RefineSettings, model: str):
        self._settings = settings
        self._path = model
        self._pool = ChatPool(settings, model, self._own_engine)
        self.models = Models.named(settings, self._pool, load_embedder(settings.embedding_model))

    @staticmethod
    def uses_this_machine(settings: RefineSettings) -> bool:
        """Whether a role has a model that runs here."""
        names = {settings.rewriter, settings.fuser, *settings.judges} - {"programs"}
        return not all(map(is_endpoint, names))

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        return load_tokenizer(self._path)

    @cached_property
    def own(self) -> "PreTrainedModel":
        """The model that is refined for, on the GPU where there is one."""
        import torch

        return load_model(self._path).to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def load(self) -> None:
        """Loads the model that is refined for if a role has it, so that weights that cannot be loaded are known."""
        if LOCAL in (self._settings.rewriter, self._settings.fuser, *self._settings.judges):
            self.own  # noqa: B018

    def _own_engine(self) -> "Engine":
        settings = self._settings
        return make_engine(settings.engine, self.own, self.tokenizer, max_model_len=settings.max_model_len)

    def nll(self, prompts: Sequence[Sequence[Message]], answers: Sequence[str]) -> list[float | None]:
        """Mean negative log-likelihood a token of each answer under the model that is refined for, in nats."""
        self._pool.release()
        found = log_likelihoods(self.own, self.tokenizer, prompts, answers)
        return [None if value is None else -value for value in found]

    def close(self) -> None:
        self._pool.close()
