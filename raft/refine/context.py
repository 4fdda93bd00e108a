"""What every stage of one refinement works with."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from raft.chat import ChatModel, LocalChat
from raft.chat.pool import ChatPool, judge_name
from raft.engines import Engine
from raft.judges import Judge, default_judges
from raft.judges.model import ModelJudge
from raft.prompts import WORDINGS, Wording
from raft.refine.acceptance import Acceptance
from raft.refine.embed import Embedder, load_embedder
from raft.refine.lines import JudgeLine, SimilarityLine, TextLine
from raft.refine.panel import Panel
from raft.refine.progress import Stages
from raft.refine.store import Failures, Store
from raft.refine.vectors import StoredVectors
from raft.settings import RefineSettings


@dataclass(frozen=True)
class Models:
    """Who writes, compares and judges."""

    rewriter: ChatModel
    """The model that will be trained: it says each answer in its own words."""
    fuser: ChatModel
    embedder: Embedder
    judges: Sequence[Judge]
    make_room: Callable[[], None] = lambda: None
    """Called after a stage: where several models share this machine, they give back what the next one may need."""

    @classmethod
    def local(
        cls,
        name: str,
        engine: Engine,
        settings: RefineSettings,
        *,
        fuser: ChatModel | None = None,
        embedder: Embedder | None = None,
        judges: Sequence[Judge] | None = None,
    ) -> "Models":
        """One engine of this process for all, and programs as judges, but for those that are given.

        name: of the engine's weights, part of the keys: another one for other weights.
        """
        own = LocalChat(name, lambda: engine, batch_size=settings.batch_size, max_model_len=settings.max_model_len)
        return cls(
            own,
            fuser or own,
            load_embedder(settings.embedding_model) if embedder is None else embedder,
            default_judges() if judges is None else judges,
        )

    @classmethod
    def named(cls, settings: RefineSettings, pool: ChatPool, embedder: Embedder) -> "Models":
        """Those that the settings name. ConfigError where a name is none."""
        judges: list[Judge] = []
        for name in settings.judges:
            judges += default_judges() if name == "programs" else [ModelJudge(pool[name], name=judge_name(name))]
        return cls(pool[settings.rewriter], pool[settings.fuser], embedder, judges, pool.make_room)


@dataclass(frozen=True)
class RefineContext:
    """The parts of one refinement."""

    settings: RefineSettings
    models: Models
    texts: Mapping[str, Store[TextLine]]
    """By stage: rewrite, fuse."""
    similarities: Store[SimilarityLine]
    failures: Failures
    panel: Panel
    seed: int
    """Of the run."""
    retry_failed: bool
    """Whether texts that failed, in a way that would last, are asked for again."""
    stages: Stages
    """How far they are."""

    @property
    def wording(self) -> Wording:
        """Of the prompts."""
        return WORDINGS[self.settings.prompts]

    @property
    def acceptance(self) -> Acceptance:
        return Acceptance(self.wording, self.settings)


@contextmanager
def open_context(
    folder: Path, settings: RefineSettings, models: Models, *, seed: int, progress: bool, retry_failed: bool = False
) -> Iterator[RefineContext]:
    """A refinement whose stores are in `folder`, open for as long as the context lasts."""
    with (
        Store[TextLine](folder / "rewrite.jsonl") as rewrite,
        Store[SimilarityLine](folder / "filter.jsonl") as similarities,
        Store[TextLine](folder / "fuse.jsonl") as fuse,
        Store[JudgeLine](folder / "judge.jsonl") as judge,
        Failures(folder / "failed.jsonl") as failures,
    ):
        texts, panel = {"rewrite": rewrite, "fuse": fuse}, Panel(models.judges, judge, retry_failed)
        models = replace(models, embedder=StoredVectors(models.embedder, folder / "vectors.bin"))
        stages = Stages(show=progress)
        yield RefineContext(settings, models, texts, similarities, failures, panel, seed, retry_failed, stages)
