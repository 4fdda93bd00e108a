"""Settings of the trainer: RAFT's own, and those of transformers.TrainingArguments, some with other defaults."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt
from transformers import TrainingArguments

from raft.errors import ConfigError
from raft.methods import BLIND_LAMBDA_MAX, Method, Target, TeacherContext, get_method
from raft.settings.check import check, check_fields, field_hints, unknown
from raft.settings.schema import (
    Config,
    Count,
    CountOrZero,
    Decay,
    EngineKind,
    NotNegative,
    Positive,
    PositiveShare,
    Share,
)
from raft.train.arguments import check_parts, check_values


@dataclass
class RAFTConfig(TrainingArguments):
    """Settings of `RAFTTrainer`. Settings not listed here are documented by transformers.TrainingArguments.

    Defaults are the paper's where it states them: 3 epochs, batch 16, lr 5e-6, AdamW with weight decay 0.01, K = 512,
    T = 1.5, beta = 0.9. It does not state the schedule (here: linear to zero, the default of transformers), the warm-up
    (here: none), or the temperature, length and number of the rollouts (here: 1.0, 512 tokens, 1).
    """

    method: str = "raft"
    """A method of `raft.methods`: raft, sft, sdft, on_policy, fapm or l2sp."""
    method_options: dict[str, Any] | None = None
    """Options that only this method has, by name: {alpha: 0.1} for l2sp."""
    target: Target | None = None
    """The answer to train on: fused (the reference where a row has no fused one), raw (the reference) or rewritten.
    None: the method's own."""
    assistant_turns: Literal["last", "all"] = "last"
    """Assistant turns that L_SFT trains: the last one, which is the answer, or all of them except messages with
    weight 0. Rollouts always replace the last one."""
    teacher_context: TeacherContext | None = None
    """What the teacher reads besides the question: answer (Eq. 7) or none. None: the method's own."""
    teacher_prompt: Literal["paper", "chat"] = "chat"
    """The prompt that shows the teacher question and answer (`raft.prompts.TEACHER_PROMPTS`): paper is that of App. H,
    chat one whose words instruction models do not repeat."""

    top_k: Count = 512
    """K: both distributions are restricted to the teacher's K most probable tokens (Eq. 9). At most the vocabulary."""
    temperature: Positive = 1.5
    """Temperature T of both distributions in L_KL (Eq. 8)."""
    divergence: Literal["forward", "reverse", "jsd"] = "forward"
    """forward is KL(teacher || student), as in the paper."""
    jsd_beta: Annotated[float, Gt(0), Lt(1)] = 0.5
    """Weight of the teacher in the mixture of jsd, between 0 and 1. Not the beta of Eq. 11, which is ema_beta."""
    tail: Literal["renormalize", "bucket"] = "renormalize"
    """The probability outside the K tokens: dropped, so that the K tokens sum to 1 (renormalize, as in the paper), or
    kept as one more class (bucket)."""

    balance: Literal["ema", "gradient", "fixed"] | None = None
    """How lambda is set: ema (Eqs. 11-12, which make the two losses equal), gradient (the same with the norms of the
    losses' gradients at the hidden states before the head, `raft.train.balance`), or fixed (fixed_lambda). None: fixed
    if fixed_lambda is given, else ema."""
    ema_beta: Decay = 0.9
    """beta of the moving averages (Eq. 11) of both losses, or of both gradient norms."""
    ema_eps: Positive = 1e-8
    """Added to the average of L_KL, or of its gradient norm, before the division (Eq. 12)."""
    lambda_min: NotNegative | None = None
    """Lower bound of lambda, off by default. Under Eq. 12 lambda falls with L_SFT once the answers are memorised."""
    lambda_max: NotNegative | None = None
    """Upper bound of lambda under ema and gradient. None: 10 where the teacher does not see the answer, else none. Such
    a teacher equals the student at the start, so L_KL starts at 0, and Eq. 12 divides by it
    (`raft.methods.BLIND_LAMBDA_MAX`)."""
    fixed_lambda: NotNegative | None = None
    """A constant lambda instead of Eqs. 11-12. None with balance fixed: 1, the plain sum of both losses."""

    fapm_sparsity: Share = 0.9
    """Share of each tensor's entries that method fapm resets to the original weights after training."""

    rollouts_per_prompt: Count = 1
    """Rollouts sampled for each prompt (Eq. 6)."""
    rollout_max_tokens: Count = 512
    """Largest length of a rollout, in tokens. Longer ones are cut and have finish_reason "length"."""
    rollout_temperature: NotNegative = 1.0
    """Sampling temperature of the rollouts."""
    rollout_top_p: PositiveShare = 1.0
    """top-p of nucleus sampling of the rollouts; 1.0 samples from the student's whole distribution."""
    mask_truncated: bool = False
    """Leave rollouts that were cut at the length limit out of L_KL. The paper states no rule; by default they count."""
    steps_per_refresh: Count = 1
    """Optimizer steps for which one call of the rollout engine generates. 1 is strictly on-policy."""
    rollout_engine: EngineKind = "auto"
    """The engine that generates the rollouts; auto is vLLM where it is installed."""
    engine_weights: Literal["auto", "shared", "copied"] = "auto"
    """How the engine gets the student's weights: auto, shared or copied (`raft.engines.vllm`)."""
    max_tokens_per_micro_batch: Count | None = None
    """Largest number of tokens in one forward of the student, and of the teacher unless a single sequence is longer.
    The per_device_train_batch_size * gradient_accumulation_steps rows of an optimizer step are then split by tokens
    instead of rows. None: one forward takes the rows of a micro-batch."""
    teacher_offload: bool = False
    """Keep the teacher in CPU memory. It is on the GPU only while it scores all rollouts of a refresh."""
    peak_tflops: Positive | None = None
    """Peak dense TFLOP/s of one device in the training precision, for the MFU. None: from a table of GPU names."""
    vllm_gpu_memory_utilization: PositiveShare = 0.3
    """Largest share of the GPU's memory for vLLM: weights (the student's own, if shared) and KV cache. The cache is
    smaller where the rollouts of a refresh need less than half of this."""
    release_cache: bool = True
    """Free the engine's KV cache while the model is trained. On a GPU this needs vLLM 0.31 or later."""

    max_length: Count = 2048
    """Largest number of tokens in a prompt plus answer or rollout. Longer answers are cut, longer prompts refused."""
    teacher_max_length: Count | None = None
    """The same for the teacher, whose prompt also holds the answer. That answer is cut if needed, never the question.
    None: max_length."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the parameters when the model is given as a path. bf16 parameters, also those of a model object, get
    fp32 master weights in the optimizer, take half the memory, and can be shared with a bf16 engine."""
    log_rollouts: Annotated[int, Ge(-1)] = 8
    """Rollouts written to rollouts.jsonl, per optimizer step; -1 writes all."""
    log_gradient_parts: CountOrZero = 0
    """Interval, in optimizer steps, at which the norms of the gradients of L_SFT and lambda * L_KL at the hidden states
    before the head are logged as gradient_sft and gradient_kl. 0: never. With balance gradient they always are."""

    per_device_train_batch_size: Count = 16
    learning_rate: NotNegative = 5e-6
    weight_decay: NotNegative = 0.01
    logging_steps: NotNegative = 1
    save_strategy: str = "epoch"
    save_total_limit: int | None = 2
    remove_unused_columns: bool | None = False
    logging_nan_inf_filter: bool = False
    """With transformers' default True the host reads every loss, so every step waits for the GPU."""
    bf16: bool | None = None
    """Mixed precision. None: on if the GPU supports it. Parameters and optimizer state keep their own precision."""

    def __post_init__(self) -> None:
        if self.balance is None:
            self.balance = "ema" if self.fixed_lambda is None else "fixed"
        elif self.balance == "fixed" and self.fixed_lambda is None:
            self.fixed_lambda = 1.0
        self._check_raft()
        check_values(self)
        if self.bf16 is None:
            self.bf16 = (
                not self.use_cpu and not self.fp16 and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
            )
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # of no use without a GPU, and torch warns about it
        if self.n_gpu > 1:
            raise ConfigError(
                f"found {self.n_gpu} GPUs in one process: start one process for each, with torchrun or "
                "accelerate launch"
            )
        check_parts(self)

    @property
    def preset(self) -> type[Method]:
        return get_method(self.method)

    @property
    def balances_gradients(self) -> bool:
        return self.preset.distills and self.balance == "gradient"

    @property
    def answer_target(self) -> Target:
        return self.target or self.preset.target

    @property
    def sees_answer(self) -> bool:
        """Whether the teacher is conditioned on the answer (Eq. 7)."""
        return (self.teacher_context or self.preset.teacher_context) == "answer"

    @property
    def lambda_bound(self) -> float | None:
        """Upper bound of lambda under balance ema or gradient; None: unbounded."""
        blind = self.preset.distills and not self.sees_answer and self.balance != "fixed"
        return BLIND_LAMBDA_MAX if self.lambda_max is None and blind else self.lambda_max

    @property
    def teacher_length(self) -> int:
        return self.max_length if self.teacher_max_length is None else self.teacher_max_length

    def check_deepspeed(self) -> None:
        """ConfigError for settings that DeepSpeed, which a launcher may also enable, does not support."""
        if self.max_tokens_per_micro_batch is not None:
            raise ConfigError(
                "max_tokens_per_micro_batch: expected none beside DeepSpeed, which counts the micro-batches itself"
            )
        if self.engine_weights == "shared":
            raise ConfigError(
                "engine_weights: expected copied beside DeepSpeed, which keeps the weights in its own memory"
            )

    def _check_raft(self) -> None:
        check_fields(self, {name: hint for name, hint in field_hints(RAFTConfig).items() if name in _OWN})
        method = get_method(self.method)
        method.check_options(self.method_options or {})
        if not method.takes_shards and (self.fsdp or self.deepspeed):
            raise ConfigError(
                f"method: expected no fsdp or deepspeed beside {self.method!r}, which needs whole weights"
            )
        if self.rollout_engine == "hf" and self.engine_weights != "auto":
            raise ConfigError(
                "engine_weights: expected auto beside rollout_engine='hf', which is the model itself, found "
                f"{self.engine_weights!r}"
            )
        if self.deepspeed:
            self.check_deepspeed()
        if self.balance != "fixed" and self.fixed_lambda is not None:
            raise ConfigError(f"fixed_lambda: expected none beside balance={self.balance}, found {self.fixed_lambda}")
        if self.fixed_lambda is not None and (self.lambda_min is not None or self.lambda_max is not None):
            raise ConfigError(
                f"fixed_lambda: expected no lambda_min or lambda_max beside it, found fixed_lambda={self.fixed_lambda}"
            )
        bound = self.lambda_bound
        if self.lambda_min is not None and bound is not None and self.lambda_min > bound:
            raise ConfigError(f"lambda_min: expected at most lambda_max={bound}, found {self.lambda_min}")
        for name, length in (("max_length", self.max_length), ("teacher_max_length", self.teacher_length)):
            if method.distills and length <= self.rollout_max_tokens:
                raise ConfigError(
                    f"{name}: expected more than rollout_max_tokens={self.rollout_max_tokens}, found {length}"
                )
        for name, (needed, why) in _NEEDED.items():
            found = getattr(self, name)
            if found and found != needed:
                raise ConfigError(f"{name}: expected {str(needed).lower()}, found {found}: {why}")


_OWN = RAFTConfig.__annotations__
_NEEDED: dict[str, tuple[bool | int, str]] = {
    "remove_unused_columns": (False, "the trainer renders the rows itself"),
    "auto_find_batch_size": (False, "a restarted step would count twice in the balance of the losses"),
    "torch_compile": (False, "every step packs another number of tokens"),
    "label_smoothing_factor": (0, "L_SFT is the plain cross-entropy"),
}


def check_train_keys(train: Mapping[str, object]) -> dict[str, Any]:
    """The settings in section `train`, with names, types and ranges checked."""
    hints = field_hints(RAFTConfig)
    if "hub_token" in train:
        raise ConfigError(
            "train.hub_token: a secret does not belong into settings that are written to disk, set HF_TOKEN instead"
        )
    for name in train:
        if name not in hints:
            raise ConfigError(unknown(f"train.{name}", [f"train.{known}" for known in sorted(hints)]))
    return {name: check(hints[name], value, f"train.{name}") for name, value in train.items()}


def check_train(config: Config) -> RAFTConfig:
    """The RAFTConfig of these settings. Anything that it or `raft train` refuses is a one-line `ConfigError`."""
    given = {"seed": config.seed, "output_dir": config.run, **check_train_keys(config.train)}
    try:
        arguments = RAFTConfig(**given)
    except ConfigError as error:
        raise ConfigError(f"train.{error}") from error
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise ConfigError(f"train: {' '.join(str(error).split())}") from error
    for name, without in (("eval_strategy", "no"), ("eval_on_start", False)):
        if getattr(arguments, name) != without:
            raise ConfigError(
                f"train.{name}: expected {str(without).lower()}, `raft train` has no rows to evaluate on (RAFTTrainer "
                f"takes them as eval_dataset), found {config.train[name]!r}"
            )
    return arguments
