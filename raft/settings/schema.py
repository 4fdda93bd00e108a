"""Every setting of a run: its type, its range, its default, and below it what it is for.

A setting is added here, by a field with a docstring, and nowhere else. Settings of the training are the fields of
`raft.train.config.RAFTConfig`, which needs torch: `train` holds those that were given, and `check_train` checks them.
Both are plain dataclasses, which cost no import of pydantic, and `raft.settings.check` checks both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from raft.errors import ConfigError
from raft.settings.check import check_fields, field_hints

Count = Annotated[int, Ge(1)]
CountOrZero = Annotated[int, Ge(0)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]  # the range of numpy's seeds
NotNegative = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]
PositiveShare = Annotated[float, Gt(0), Le(1)]
Decay = Annotated[float, Ge(0), Lt(1)]  # of a moving average
EngineKind = Literal["auto", "vllm", "hf"]
PromptWording = Literal["chat", "plain"]  # the names of raft.prompts.WORDINGS


@dataclass
class RefineSettings:
    """Stage 1: rewrite, filter, fuse."""

    embedding_model: str = "minilm"
    """Sentence-embedding model of the filter: "minilm" (the packaged MiniLM) or the path of a sentence-transformers
    model."""
    tau: Share = 0.8
    """A rewriting is kept if its cosine similarity to the answer is at least this (Eq. 3)."""
    min_score: Share = 0.8
    """A text whose mean score of the judges is below this is not used."""
    max_new_words: Share = 0.0
    """Share of a fused sentence's content words that may be new: neither in the question nor in one sentence of the
    reference. More for a fusion model that is known not to invent."""
    max_lost_words: Share = 0.0
    """Share of a sentence's content words that a fused answer may lack of the sentence of the reference that it says.
    Whole sentences may be left out."""
    prompts: PromptWording = "chat"
    """How the model is asked for rewritings and fusions: "chat" for instruction models, "plain" as the micro-world's
    base was trained."""
    rounds: Count = 3
    """Rounds of fusion at most; the candidate with the best mean score of the judges wins."""
    accept_score: Share = 0.8
    """A candidate with this mean score ends the rounds early."""
    margin: Share | None = None
    """A fused answer is used only where the judges' mean score is this much above the reference's, which is scored too;
    None: the reference is not scored."""
    rewrite_temperature: NotNegative = 0.2
    """Sampling temperature of the rewriting."""
    fuse_temperature: NotNegative = 0.2
    """Sampling temperature of the fusion."""
    max_tokens: Count = 512
    """Tokens of a rewriting or fusion at most."""
    batch_size: Count = 64
    """Rows in one call of the engine; a kill loses at most the batch in flight."""
    engine: EngineKind = "auto"
    """Generation engine; "auto" is vLLM where it is installed."""
    max_model_len: Count = 2048
    """Tokens of prompt and completion together at most."""
    rewriter: str = "local"
    """Who rewrites: "local" is the model itself, as in Eq. 1; else a folder or name of another model, which then runs
    here too, or MODEL@BASE_URL of an OpenAI-compatible server, such as gpt-oss-120b@http://127.0.0.1:8000/v1."""
    fuser: str = "local"
    """Who fuses, named like the rewriter."""
    judges: Sequence[str] = ("programs",)
    """Who scores: "programs" (three, which know words alone), and models named like the rewriter."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable with the key of the servers. One on this machine needs none."""
    concurrency: Count = 256
    """Requests to a server in flight at most; fewer where the server refuses some or does not get faster."""
    requests_per_minute: Positive | None = None
    """Requests to a server in a minute at most, without repetitions."""
    timeout: Positive = 600.0
    """Seconds after which a request is sent again."""

    def __post_init__(self) -> None:
        _check_section(self, "refine")
        self.judges = tuple(self.judges)
        if not self.judges:
            raise ConfigError("refine.judges: expected at least one judge, found []")


@dataclass
class EvalSettings:
    """Answering the items of an evaluation."""

    batch_size: Count = 64
    """Items in one call of the engine."""
    max_tokens: Count = 512
    """Tokens of an answer at most."""
    engine: EngineKind = "auto"
    """Generation engine; "auto" is vLLM where it is installed."""
    temperature: NotNegative = 0.0
    """Sampling temperature; 0 is greedy."""
    max_model_len: Count = 2048
    """Tokens of prompt and answer together at most."""

    def __post_init__(self) -> None:
        _check_section(self, "evaluate")


@dataclass
class Config:
    """All settings of a run, as config.yaml of the run folder holds them."""

    model: str | None = None
    """The instruction model to start from: a folder or a name on the Hub."""
    data: str | None = None
    """The rows: a .jsonl, .json, .parquet, .csv or .tsv file, or a folder that datasets.save_to_disk wrote."""
    seed: Seed = 0
    """Seed of everything random in the run."""
    run: str | None = None
    """The run folder."""
    refine: RefineSettings = field(default_factory=RefineSettings)
    """Settings of `raft refine`."""
    train: dict[str, Any] = field(default_factory=dict)
    """Fields of RAFTConfig (and so of transformers.TrainingArguments) that differ from their defaults."""
    evaluate: EvalSettings = field(default_factory=EvalSettings)
    """Settings of `raft eval`."""

    def __post_init__(self) -> None:
        check_fields(self, {name: hint for name, hint in NAMES.items() if "." not in name})


SECTIONS: dict[str, type] = {"refine": RefineSettings, "evaluate": EvalSettings}

RENAMED = {"refine.fusion_model": "refine.fuser"}
"""Earlier names of settings, which files of earlier versions have."""

NAMES: dict[str, object] = {
    **{name: hint for name, hint in field_hints(Config).items() if name not in (*SECTIONS, "train")},
    **{f"{section}.{name}": hint for section, kind in SECTIONS.items() for name, hint in field_hints(kind).items()},
}
"""Every dotted name outside `train`, with its annotation."""


def _check_section(settings: RefineSettings | EvalSettings, section: str) -> None:
    """Checks every field, and that a prompt has room beside the completion."""
    check_fields(settings, field_hints(SECTIONS[section]), f"{section}.")
    if settings.max_model_len <= settings.max_tokens:
        raise ConfigError(
            f"{section}.max_model_len: expected more than {section}.max_tokens ({settings.max_tokens}), found "
            f"{settings.max_model_len}"
        )
