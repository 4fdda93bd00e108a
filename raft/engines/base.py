"""What every engine takes and gives: token ids in, token ids out."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, runtime_checkable

from raft.errors import ConfigError, InputError, ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

T = TypeVar("T")
FinishReason = Literal["stop", "length"]
Drafts = Sequence[Sequence[Sequence[int]]]  # for each request token sequences that its completion may well contain


@dataclass(frozen=True)
class Sampling:
    """How to draw."""

    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    max_tokens: int = 512  # of the completion
    seed: int = 0  # of a whole call, for requests that bring no seed of their own
    stop_token_ids: tuple[int, ...] = ()  # on top of every EOS id of the model
    logprobs: int = 0
    """How many requests, from the first on, get log-probabilities with their completions, where the engine has them
    without extra work."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(f"sampling: temperature must be 0 (greedy) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"sampling: top_p must be in (0, 1], got {self.top_p}")
        if self.max_tokens < 1:
            raise ConfigError(f"sampling: max_tokens must be at least 1, got {self.max_tokens}")
        if self.logprobs < 0:
            raise ConfigError(f"sampling: logprobs must be 0 or more, got {self.logprobs}")


@dataclass(frozen=True)
class Completion:
    """What one prompt became."""

    token_ids: list[int]  # with the EOS that ended it, when one did
    finish_reason: FinishReason  # "length": cut at max_tokens, or where the context of the engine ends
    logprobs: list[float] | None = None
    """Of each token, where they were asked for and the engine gives them: natural logarithms of the model's own
    probabilities, of its logits at temperature 1 over the whole vocabulary, whatever temperature and top-p it drew
    with."""


class Weights(Protocol):
    """How an engine sees the weights it generates with."""

    @property
    def mode(self) -> str:
        """ "shared" | "copied" | "disk"."""

    def refresh(self) -> None:
        """Makes the engine's weights those of the model, or raises EngineError where it can no longer follow them."""


@runtime_checkable
class Engine(Protocol):
    """Turns prompts into completions with the current weights of a model."""

    name: str
    tokenizer: "PreTrainedTokenizerBase"

    @property
    def weights(self) -> Weights: ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        drafts: Drafts | None = None,
    ) -> list[Completion]:
        """One completion a prompt, in the order of the prompts.

        seeds: one a request, each in [0, 2**63). A request draws from its own seed alone, so what it says does not
        depend on the other requests of the call, but for rounding. None: request i draws from
        `request_seed(sampling.seed, i)`. InputError where their number or a value is wrong.
        drafts: one entry a request. A hint: an engine may use it to be faster and may ignore it, as both do so far;
        the distribution of the completions is the same with and without.
        """

    def refresh(self) -> None:
        """To be called after the weights changed and before the next `generate`."""

    def release(self) -> None:
        """Gives back the memory of the KV cache; the weights stay."""

    def resume(self) -> None:
        """Undoes `release`. `generate` does it by itself."""

    def close(self) -> None:
        """Frees everything but the model. Calling it again does nothing."""


def request_seeds(sampling: Sampling, count: int, seeds: Sequence[int] | None) -> list[int]:
    """The seed of each of the `count` requests of a call: `seeds`, checked, or those that follow from the call's."""
    if seeds is None:
        return [request_seed(sampling.seed, i) for i in range(count)]
    if len(seeds) != count:
        raise InputError(f"seeds: expected one for each of {count} prompts, got {len(seeds)}")
    for i, seed in enumerate(seeds):
        if not 0 <= seed < 2**63:
            raise InputError(f"seeds: expected numbers from 0 to 2**63 - 1, got {seed} for prompt {i}")
    return list(seeds)


def request_seed(seed: int, index: int) -> int:
    """A seed in [0, 2**63) for request `index` of a call: neighbouring seeds and indices give unrelated streams."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def eos_ids(model: object, tokenizer: "PreTrainedTokenizerBase | None") -> tuple[int, ...]:
    """Every id that ends an answer, by any of the three places that may name one. Chat models often have several.

    model: whatever has the "config" and "generation_config" of a model.
    """
    named = [
        getattr(getattr(model, "generation_config", None), "eos_token_id", None),
        getattr(getattr(model, "config", None), "eos_token_id", None),
        getattr(tokenizer, "eos_token_id", None),
    ]
    found: set[int] = set()
    for ids in named:
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
    return tuple(sorted(found))


def check_prompts(prompts: Sequence[Sequence[int]], max_model_len: int, vocab_size: int) -> None:
    """Refuses what an engine would only trip over in the middle of a batch."""
    for i, prompt in enumerate(prompts):
        if not 0 < len(prompt) < max_model_len:
            raise InputError(
                f"prompt {i}: expected 1 to {max_model_len - 1} tokens (max_model_len {max_model_len}, less one to "
                f"generate), got {len(prompt)}"
            )
        if min(prompt) < 0 or max(prompt) >= vocab_size:
            raise InputError(f"prompt {i}: token ids must be in [0, {vocab_size}), got {min(prompt)} to {max(prompt)}")


def context_length(config: "PretrainedConfig", wanted: int) -> int:
    """`wanted`, or the model's own limit where that is less."""
    limit = getattr(config, "max_position_embeddings", None) or wanted
    if limit < wanted:
        log.info("max_model_len %d is more than the model's %d positions; using %d", wanted, limit, limit)
    return min(limit, wanted)


def cache_bytes(config: "PretrainedConfig", item_bytes: int) -> int:
    """Bytes of the keys and values of one token, in all layers. config: of the text model."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size: int = config.num_hidden_layers * 2 * heads * head_dim * item_bytes
    return size


def from_folder(from_pretrained: Callable[..., T], path: str | Path, what: str, **options: object) -> T:
    """`from_pretrained(path)` without code from the checkpoint, with an error that names the folder."""
    try:
        return from_pretrained(path, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{path}: expected a folder with {what} that transformers can load: {reason}") from error
