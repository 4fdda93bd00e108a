"""Settings of the trainer: those of transformers.TrainingArguments, some with other defaults, and RAFT's own."""

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
    """Settings of `RAFTTrainer`. What is not listed here is documented by transformers.TrainingArguments.

    Defaults are the paper's where it states them: 3 epochs, batch 16, lr 5e-6, AdamW with weight decay 0.01, K = 512,
    T = 1.5, beta = 0.9. It does not state the schedule (here: linear to zero, the default of transformers), the warm-up
    (here: none) and the rollouts' temperature, length and number (here: 1.0, 512, 1).
    """

    method: str = "raft"
    """A method of `raft.methods`: raft, sft, sdft, on_policy, fapm or l2sp."""
    method_options: dict[str, Any] | None = None
    """Numbers of the method alone, by name: {alpha: 0.1} for l2sp."""
    target: Target | None = None
    """The answer to train on: fused (the reference where a row has no fused one), raw, or rewritten. None: the
    method's own."""
    assistant_turns: Literal["last", "all"] = "last"
    """Turns of the assistant in L_SFT: the last one, which is the answer, or those before it too (but for messages with
    weight 0). Rollouts always take the place of the last one."""
    teacher_context: TeacherContext | None = None
    """What the teacher reads beside the question: answer (Eq. 7) or none. None: the method's own."""
    teacher_prompt: Literal["paper", "chat"] = "chat"
    """How the teacher is shown question and answer (`raft.prompts.TEACHER_PROMPTS`): paper as in its App. H, chat in
    words that an instruction model does not repeat."""

    top_k: Count = 512
    """K: the teacher's most probable tokens that the distributions are cut to (Eq. 9), at most the vocabulary."""
    temperature: Positive = 1.5
    """T of both distributions (Eq. 8)."""
    divergence: Literal["forward", "reverse", "jsd"] = "forward"
    """forward is KL(teacher || student), as in the paper."""
    jsd_beta: Annotated[float, Gt(0), Lt(1)] = 0.5
    """Weight of the teacher in the mixture of jsd, between 0 and 1. Not the beta of Eq. 11, which is ema_beta."""
    tail: Literal["renormalize", "bucket"] = "renormalize"
    """What becomes of the mass outside the K tokens: renormalised away (the paper), or kept as one more class."""

    balance: Literal["ema", "gradient", "fixed"] | None = None
    """Where lambda comes from: ema (Eqs. 11-12, which make the two losses equal), gradient (the same averages of the
    norms of the losses' gradients at the hidden states before the head, `raft.train.balance`), or fixed (fixed_lambda).
    None: fixed if that is given, else ema."""
    ema_beta: Decay = 0.9
    """beta of the moving averages of both losses (Eq. 11), or of both norms."""
    ema_eps: Positive = 1e-8
    """Added to the average of L_KL, or of its norm, before the division (Eq. 12)."""
    lambda_min: NotNegative | None = None
    """Lower bound of lambda, off by default. Eq. 12 lets lambda fall with L_SFT once the answers are memorised."""
    lambda_max: NotNegative | None = None
    """Upper bound of lambda under ema and gradient. None: 10 where the teacher does not see the answer, else none.
    Such a teacher equals the student at the start, L_KL begins at 0, and Eq. 12 divides by it
    (`raft.methods.BLIND_LAMBDA_MAX`)."""
    fixed_lambda: NotNegative | None = None
    """A constant lambda instead of Eqs. 11-12. None beside balance fixed: 1, the plain sum of both losses."""

    fapm_sparsity: Share = 0.9
    """Share of each tensor's entries that method fapm puts back to the original weights after training."""

    rollouts_per_prompt: Count = 1
    """Trajectories drawn for each prompt (Eq. 6)."""
    rollout_max_tokens: Count = 512
    """Length of a rollout at most. Longer ones are cut and marked with finish_reason "length"."""
    rollout_temperature: NotNegative = 1.0
    """Sampling temperature of the rollouts."""
    rollout_top_p: PositiveShare = 1.0
    """Nucleus of the rollouts' sampling; 1.0 samples from the student itself."""
    mask_truncated: bool = False
    """Leave rollouts that hit the length limit out of L_KL. The paper names no rule; by default they count too."""
    steps_per_refresh: Count = 1
    """Optimizer steps that one call of the rollout engine feeds. 1 is strictly on-policy."""
    rollout_engine: EngineKind = "auto"
    """What generates the rollouts; auto is vLLM where it is installed."""
    engine_weights: Literal["auto", "shared", "copied"] = "auto"
    """How the engine sees the student's weights: auto, shared or copied (`raft.engines.vllm`)."""
    max_tokens_per_micro_batch: Count | None = None
    """Tokens in one forward of training at most, and of the teacher unless one sequence alone is longer. The rows of an
    optimizer step, per_device_train_batch_size * gradient_accumulation_steps of them, are then split by tokens and no
    longer by rows. None: the rows of a micro-batch."""
    teacher_offload: bool = False
    """Keep the teacher in CPU memory. It is on the GPU only to score the rollouts of a refresh, all of them at once."""
    peak_tflops: Positive | None = None
    """Dense TFLOP/s of one device in the precision of training, for the MFU. None: from a table, by the GPU's name."""
    vllm_gpu_memory_utilization: PositiveShare = 0.3
    """Share of the GPU for vLLM: the weights, which are the student's own where they are shared, and the KV cache."""
    release_cache: bool = True
    """Free the memory of the engine's KV cache while the model is trained. On a GPU that takes vLLM 0.31 or later."""

    max_length: Count = 2048
    """Tokens of prompt and answer, or prompt and rollout, at most. Longer answers are cut, longer prompts refused."""
    teacher_max_length: Count | None = None
    """The same for the teacher, whose prompt holds the answer too: that answer is cut, never the question. None:
    max_length."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the parameters of a model given by its path. bf16 ones (those of a model given as it is too) get
    fp32 master weights in the optimizer, take half the memory, and let a bf16 engine share them."""
    log_rollouts: Annotated[int, Ge(-1)] = 8
    """Rollouts written to rollouts.jsonl, per optimizer step; -1 writes all."""
    log_gradient_parts: CountOrZero = 0
    """Every so many optimizer steps the norms of the gradients of L_SFT and lambda * L_KL at the hidden states before
    the head are logged, as gradient_sft and gradient_kl. 0: never. Under balance gradient they always are."""

    per_device_train_batch_size: Count = 16
    learning_rate: NotNegative = 5e-6
    weight_decay: NotNegative = 0.01
    logging_steps: NotNegative = 1
    save_strategy: str = "epoch"
    save_total_limit: int | None = 2
    remove_unused_columns: bool | None = False
    logging_nan_inf_filter: bool = False
    """With transformers' True the host reads every loss, and so waits for the GPU in every step."""
    bf16: bool | None = None
    """Mixed precision. None: where a GPU supports it. The parameters, and so the optimizer's state, keep their own
    precision."""

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
            self.dataloader_pin_memory = False  # only a GPU reads pinned memory, and torch warns for every loader
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
        """Upper bound of a lambda that follows moving averages."""
        blind = self.preset.distills and not self.sees_answer and self.balance != "fixed"
        return BLIND_LAMBDA_MAX if self.lambda_max is None and blind else self.lambda_max

    @property
    def teacher_length(self) -> int:
        return self.max_length if self.teacher_max_length is None else self.teacher_max_length

    def check_deepspeed(self) -> None:
        """Settings that do not go with DeepSpeed, which may also come from the launcher."""
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
            if found != needed:
                raise ConfigError(f"{name}: expected {str(needed).lower()}, found {found}: {why}")


_OWN = RAFTConfig.__annotations__
_NEEDED: dict[str, tuple[Any, str]] = {
    "remove_unused_columns": (False, "the trainer renders the rows itself"),
    "auto_find_batch_size": (False, "a restarted step would count twice in the balance of the losses"),
    "torch_compile": (False, "every step packs another number of tokens"),
    "label_smoothing_factor": (0, "L_SFT is the plain cross-entropy"),
}


def check_train_keys(train: Mapping[str, Any]) -> dict[str, Any]:
    """The settings below `train`, with names, types and ranges checked."""
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
    """The RAFTConfig of these settings; whatever it or `raft train` refuses is a one-line `ConfigError`."""
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
