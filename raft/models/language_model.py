"""A causal language model in two parts: the decoder, which gives hidden states, and the output head, for logits.

The losses and likelihoods of this project take hidden states and the head, because the logits of all tokens would not
fit into memory.
"""

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypedDict, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel as DDP
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from raft.errors import ModelError
from raft.models.adapters import base_model, peft_configs
from raft.models.load import check_model, one_line
from raft.models.packing import NAME, Pack, pack, packed_attention

logger = logging.getLogger(__name__)

_KNOWN = "known to work are Qwen3, Llama, SmolLM3 and Phi-3"

T = TypeVar("T")


class HeadOptions(TypedDict):
    """What an output head has besides its weight, under the names that the functions of `raft_kernels` give it."""

    bias: Tensor | None  # [V]
    logit_scale: float
    softcap: float | None
    vocab_size: int | None


@dataclass(frozen=True)
class OutputHead:
    """The output head: logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap)."""

    weight: Tensor  # [V, H]
    bias: Tensor | None  # [V]
    scale: float
    softcap: float | None
    tokens: int | None = None
    """How many of the first rows are tokens that teacher and student share; L_KL uses only those. None: all rows."""

    @property
    def options(self) -> HeadOptions:
        """Everything but the weight, as keyword arguments of the functions of `raft_kernels`."""
        return {
            "bias": self.bias,
            "logit_scale": self.scale,
            "softcap": self.softcap,
            "vocab_size": self.tokens,
        }

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, V] logits of [N, H] hidden states. It holds them all, so N should be small."""
        logits = nn.functional.linear(hidden, self.weight, self.bias) * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


class LanguageModel:
    """Decoder and head of a causal language model of transformers, plain or with LoRA adapters.

    uses_packed_sdpa: whether `packed_sdpa` keeps the sequences of a pack apart. Where a model's code does not pass its
    arguments on to the attention, `check` sets this to false, and restarted position ids alone keep them apart.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.inner: PreTrainedModel = base_model(model)
        config: PretrainedConfig | None = getattr(self.inner, "config", None)
        if not hasattr(self.inner, "get_output_embeddings") or config is None or config.is_encoder_decoder:
            raise ModelError(f"{type(self.inner).__name__}: expected a causal language model of transformers")
        if any(getattr(c, "is_prompt_learning", False) for c in peft_configs(model)):
            raise ModelError(
                f"{type(self.inner).__name__}: expected LoRA adapters or none, found virtual tokens before the prompt, "
                "which packed sequences have no place for"
            )
        self.uses_packed_sdpa = True
        self.tokens: int | None = None  # becomes OutputHead.tokens
        self.head()
        self.decoder()

    @property
    def vocabulary(self) -> int:
        """Rows of the head, those of padding included."""
        return self.head().weight.shape[0]

    def head(self) -> OutputHead:
        """The head with its current weight: engines and wrappers (FSDP, DeepSpeed) may have replaced the tensor."""
        module = self.inner.get_output_embeddings()
        if module is None:
            raise ModelError(f"{type(self.inner).__name__}: has no output head, expected a causal language model")
        if not isinstance(module, nn.Linear) or hasattr(module, "lora_A"):
            raise ModelError(
                f"{type(self.inner).__name__}: the output head is {type(module).__name__}, expected a plain linear "
                "layer"
            )
        config = self.inner.config.get_text_config()
        scale = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere multiplies
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)  # Granite divides
        return OutputHead(
            module.weight, module.bias, scale, getattr(config, "final_logit_softcapping", None), self.tokens
        )

    def decoder(self) -> nn.Module:
        """The module whose output is the hidden states that enter the head."""
        found = self.inner.get_decoder()
        if found is None or found is self.inner:
            raise ModelError(
                f"{type(self.inner).__name__}: transformers' get_decoder finds no decoder below its head, so it cannot "
                f"be trained here; {_KNOWN}"
            )
        return found

    def hidden(self, batch: Pack) -> Tensor:
        """[L, H] hidden states of a pack, as they enter the head."""
        return self.decoder()(**batch.kwargs(self.inner)).last_hidden_state[0]

    def attention(self) -> AbstractContextManager[None]:
        """A context that every forward pass on a pack, and its backward pass, must run in."""
        return packed_attention(self.inner, self.uses_packed_sdpa)

    @property
    def shares_prompts(self) -> bool:
        """Whether several sequences of a pack can attend to one copy of the prompt that they share."""
        return self.uses_packed_sdpa and self.inner.config._attn_implementation in ("sdpa", NAME)

    def use_flash_attention(self) -> None:
        """Switches to flash-attention's varlen kernels where they can run: on a GPU, in half precision.

        They take packed sequences without padding, which `packed_sdpa` adds for the attention.
        """
        weight = self.head().weight
        half = weight.dtype in (torch.bfloat16, torch.float16)
        if not (half and weight.is_cuda and is_flash_attn_2_available()):
            return
        try:
            self.inner.set_attn_implementation("flash_attention_2")
            self.check()
        except (ModelError, ImportError, RuntimeError, ValueError) as error:
            logger.info("packs run through SDPA, flash-attention does not take this model (%s)", error)
            self.inner.set_attn_implementation("sdpa")

    @torch.no_grad()
    def check(self) -> None:
        """Computes logits of a small pack by decoder and head; `ModelError` where they are not the model's own."""
        device = self.head().weight.device
        if device.type == "meta" or not self.head().weight.numel():
            return  # this rank does not hold the weights, so it cannot compute
        was_training = self.inner.training
        self.inner.eval()
        try:
            # Short sequences with different tokens: an attention across their borders changes the logits visibly.
            sequences = [
                [5 % self.vocabulary],
                [t % self.vocabulary for t in (9, 4, 7)],
                [8 % self.vocabulary, 6 % self.vocabulary],
            ]
            own = torch.cat(
                [self.inner(input_ids=torch.tensor([s], device=device), use_cache=False).logits[0] for s in sequences]
            )
            batch = pack(sequences).to(device)
            if not self._agrees(batch, own):
                self.uses_packed_sdpa = False
                if not self._agrees(batch, own):
                    raise ModelError(
                        f"{type(self.inner).__name__}: packed sequences through its decoder and head do not give the "
                        f"model's own logits, so it cannot be trained here; {_KNOWN}"
                    )
        finally:
            self.inner.train(was_training)

    def _agrees(self, batch: Pack, own: Tensor) -> bool:
        try:
            with self.attention():
                logits = self.head().logits(self.hidden(batch))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
            if self.uses_packed_sdpa:
                return False
            raise ModelError(
                f"{type(self.inner).__name__}: its decoder does not take packed sequences, so it cannot be trained "
                f"here; {_KNOWN} ({type(error).__name__}: {one_line(error)})"
            ) from error
        coarse = own.dtype in (torch.bfloat16, torch.float16)
        spread = float(own.float().std())
        return bool(((logits - own).abs().max() <= (0.1 if coarse else 1e-3) * max(spread, 1e-3)).item())


def check_architecture(path: str | os.PathLike[str]) -> None:
    """Raises `ModelError` where config.json alone shows that the model cannot be trained. It reads no weights."""
    path = check_model(path)
    try:
        config = AutoConfig.from_pretrained(path)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        raise ModelError(f"{path}: no causal language model by its config.json: {one_line(error)}") from error
    try:
        LanguageModel(model)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def is_sharded(model: nn.Module, wrapper: nn.Module) -> bool:
    """Whether the weights are split over the ranks (FSDP, DeepSpeed) and only complete within the wrapper's forward.

    Every rank must take part in such a forward. FSDP2 splits the model in place. With DDP the weights are complete.
    """
    return (wrapper is not model or isinstance(wrapper, FSDPModule)) and not isinstance(wrapper, DDP)


def inside_forward(wrapper: nn.Module, module: nn.Module, compute: Callable[[], T]) -> T:
    """Calls `wrapper` (DDP, FSDP, DeepSpeed, or `module` itself) with `compute` in place of the forward of `module`.

    Wrappers gather the weights for a forward pass and prepare the reduction of gradients. Losses that use the decoder
    and the head's weight directly must therefore be computed within one.
    """
    own = module.__dict__.get("forward")

    def forward(*args: object, **kwargs: object) -> T:
        restore()
        return compute()

    def restore() -> None:
        if own is None:
            module.__dict__.pop("forward", None)
        else:
            module.__dict__["forward"] = own

    module.__dict__["forward"] = forward
    try:
        return wrapper()
    finally:
        restore()
