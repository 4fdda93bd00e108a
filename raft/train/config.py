"""Settings of the trainer: those of transformers.TrainingArguments, some with other defaults, and RAFT's own."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import TrainingArguments

from raft.errors import ConfigError
from raft.methods import BLIND_LAMBDA_MAX, Method, Target, TeacherContext, get_method
from raft.train.arguments import check_parts, check_values
from raft.train.ranges import number, one_of, whole


@dataclass
class RAFTConfig(TrainingArguments):
    """Settings of `RAFTTrainer`. What is not listed here is documented by transformers.TrainingArguments.

    Defaults are the paper's where it states them: 3 epochs, batch 16, lr 5e-6, AdamW with weight decay 0.01, K = 512,
    T = 1.5, beta = 0.9. It is silent on the schedule (here: linear to zero, as transformers has it), on warm-up (none)
    and on the rollouts' temperature, length and number (here: 1.0, 512, 1).
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

    top_k: int = 512
    """K: the teacher's most probable tokens that the distributions are cut to (Eq. 9), at most the vocabulary."""
    temperature: float = 1.5
    """T of both distributions (Eq. 8)."""
    divergence: Literal["forward", "reverse", "jsd"] = "forward"
    """forward is KL(teacher || student), as in the paper."""
    jsd_beta: float = 0.5
    """Weight of the teacher in the mixture of jsd, between 0 and 1. Not the beta of Eq. 11, which is ema_beta."""
    tail: Literal["renormalize", "bucket"] = "renormalize"
    """What becomes of the mass outside the K tokens: renormalised away (the paper), or kept as one more class."""

    balance: Literal["ema", "gradient", "fixed"] | None = None
    """Where lambda comes from: ema (Eqs. 11-12, which make the two losses equal), gradient (the same averages of the
    norms of the losses' gradients at the hidden states before the head, `raft.train.balance`), or fixed (fixed_lambda).
    None: fixed if that is given, else ema."""
    ema_beta: float = 0.9
    """beta of the moving averages of both losses (Eq. 11), or of both norms."""
    ema_eps: float = 1e-8
    """Added to the average of L_KL, or of its norm, before the division (Eq. 12)."""
    lambda_min: float | None = None
    """Lower bound of lambda, off by default. Eq. 12 lets lambda fall with L_SFT once the answers are memorised."""
    lambda_max: float | None = None
    """Upper bound of lambda under ema and gradient. None: 10 where the teacher does not see the answer, else none.
    Such a teacher equals the student at the start, L_KL begins at 0, and Eq. 12 divides by it
    (`raft.methods.BLIND_LAMBDA_MAX`)."""
    fixed_lambda: float | None = None
    """A constant lambda instead of Eqs. 11-12. None beside balance fixed: 1, the plain sum of both losses."""

    fapm_sparsity: float = 0.9
    """Share of each tensor's entries that method fapm puts back to the original weights after training."""

    rollouts_per_prompt: int = 1
    """Trajectories drawn for each prompt (Eq. 6)."""
    rollout_max_tokens: int = 512
    """Length of a rollout at most. Longer ones are cut and marked with finish_reason "length"."""
    rollout_temperature: float = 1.0
    """Sampling temperature of the rollouts."""
    rollout_top_p: float = 1.0
    """Nucleus of the rollouts' sampling; 1.0 samples from the student itself."""
    mask_truncated: bool = False
    """Leave rollouts that hit the length limit out of L_KL. The paper is silent; by default they count like others."""
    steps_per_refresh: int = 1
    """Optimizer steps that one call of the rollout engine feeds. 1 is strictly on-policy."""
    rollout_engine: Literal["auto", "vllm", "hf"] = "auto"
    """What generates the rollouts; auto is vLLM where it is installed."""
    engine_weights: str = "auto"
    """How the engine sees the student's weights: auto, shared or copied (`raft.engines.vllm`)."""
    max_tokens_per_micro_batch: int | None = None
    """Tokens in one forward of training at most, and of the teacher unless one sequence alone is longer. The rows of an
    optimizer step, per_device_train_batch_size * gradient_accumulation_steps of them, are then split by tokens and no
    longer by rows. None: the rows of a micro-batch."""
    teacher_offload: bool = False
    """Keep the teacher in CPU memory. It is on the GPU only to score the rollouts of a refresh, all of them at once."""
    peak_tflops: float | None = None
    """Dense TFLOP/s of one device in the precision of training, for the MFU. None: from a table, by the GPU's name."""
    vllm_gpu_memory_utilization: float = 0.3
    """Share of the GPU for vLLM: the weights, which are the student's own where they are shared, and the KV cache."""
    release_cache: bool = True
    """Free the memory of the engine's KV cache while the model is trained. On a GPU that takes vLLM 0.31 or later."""

    max_length: int = 2048
    """Tokens of prompt and answer, or prompt and rollout, at most. Longer answers are cut, longer prompts refused."""
    teacher_max_length: int | None = None
    """The same for the teacher, whose prompt holds the answer too: that answer is cut, never the question. None:
    max_length."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the parameters of a model given by its path. bf16 ones (those of a model given as it is too) get
    fp32 master weights in the optimizer, take half the memory, and let a bf16 engine share them."""
    log_rollouts: int = 8
    """Rollouts written to rollouts.jsonl, per optimizer step; -1 writes all."""
    log_gradient_parts: int = 0
    """Every so many optimizer steps the norms of the gradients of L_SFT and lambda * L_KL at the hidden states before
    the head are logged, as gradient_sft and gradient_kl. 0: never. Under balance gradient they always are."""

    per_device_train_batch_size: int = 16
    learning_rate: float = 5e-6
    weight_decay: float = 0.01
    logging_steps: float = 1
    save_strategy: str = "epoch"
    save_total_limit: int | None = 2
    remove_unused_columns: bool | None = False
    logging_nan_inf_filter: bool = False
    """transformers' True looks at every loss, for which the host has to wait in every step."""
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
            self.dataloader_pin_memory = False  # there is nothing to pin it for, and torch says so for every loader
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
        method = get_method(self.method)
        method.check_options(self.method_options or {})
        one_of("target", self.target, (None, "fused", "raw", "rewritten"))
        one_of("assistant_turns", self.assistant_turns, ("last", "all"))
        one_of("teacher_context", self.teacher_context, (None, "answer", "none"))
        one_of("balance", self.balance, ("ema", "gradient", "fixed"))
        one_of("divergence", self.divergence, ("forward", "reverse", "jsd"))
        one_of("tail", self.tail, ("renormalize", "bucket"))
        one_of("param_dtype", self.param_dtype, ("float32", "bfloat16"))
        one_of("rollout_engine", self.rollout_engine, ("auto", "vllm", "hf"))
        one_of("engine_weights", self.engine_weights, ("auto", "shared", "copied"))
        if self.rollout_engine == "hf" and self.engine_weights != "auto":
            raise ConfigError(
                "engine_weights: expected auto beside rollout_engine='hf', which is the model itself, found "
                f"{self.engine_weights!r}"
            )
        for name in ("top_k", "rollouts_per_prompt", "rollout_max_tokens", "steps_per_refresh", "max_length"):
            whole(name, getattr(self, name), 1)
        for name in ("teacher_max_length", "max_tokens_per_micro_batch"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), 1)
        number("vllm_gpu_memory_utilization", self.vllm_gpu_memory_utilization, low=0.0, high=1.0, open_low=True)
        if self.peak_tflops is not None:
            number("peak_tflops", self.peak_tflops, low=0.0, open_low=True)
        if self.deepspeed:
            self.check_deepspeed()
        whole("log_rollouts", self.log_rollouts, -1)
        whole("log_gradient_parts", self.log_gradient_parts, 0)
        number("temperature", self.temperature, low=0.0, open_low=True)
        number("jsd_beta", self.jsd_beta, low=0.0, high=1.0, open_low=True, open_high=True)
        number("fapm_sparsity", self.fapm_sparsity, low=0.0, high=1.0)
        number("ema_beta", self.ema_beta, low=0.0, high=1.0, open_high=True)
        number("ema_eps", self.ema_eps, low=0.0, open_low=True)
        number("rollout_temperature", self.rollout_temperature, low=0.0)
        number("rollout_top_p", self.rollout_top_p, low=0.0, high=1.0, open_low=True)
        for name in ("lambda_min", "lambda_max", "fixed_lambda"):
            if getattr(self, name) is not None:
                number(name, getattr(self, name), low=0.0)
        if self.balance != "fixed" and self.fixed_lambda is not None:
            raise ConfigError(f"fixed_lambda: expected none beside balance={self.balance}, found {self.fixed_lambda}")
        if self.fixed_lambda is not None and (self.lambda_min is not None or self.lambda_max is not None):
            raise ConfigError(
                f"fixed_lambda: expected no lambda_min or lambda_max beside it, found fixed_lambda={self.fixed_lambda}"
            )
        bound = self.lambda_bound
        if self.lambda_min is not None and bound is not None and self.lambda_min > bound:
            raise ConfigError(f"lambda_min: expected at most lambda_max={bound}, found {self.lambda_min}")
        if method.distills and self.max_length <= self.rollout_max_tokens:
            raise ConfigError(
                f"max_length: expected more than rollout_max_tokens={self.rollout_max_tokens}, found {self.max_length}"
            )
        if method.distills and self.teacher_length <= self.rollout_max_tokens:
            raise ConfigError(
                f"teacher_max_length: expected more than rollout_max_tokens={self.rollout_max_tokens}, found "
                f"{self.teacher_length}"
            )
        if self.remove_unused_columns:
            raise ConfigError("remove_unused_columns: expected false, the trainer renders the rows itself")
        if self.auto_find_batch_size:
            raise ConfigError(
                "auto_find_batch_size: expected false, a restarted step would count twice in the balance of the losses"
            )
        if self.torch_compile:
            raise ConfigError("torch_compile: expected false, every step packs another number of tokens")
        if self.label_smoothing_factor:
            raise ConfigError(
                f"label_smoothing_factor: expected 0, found {self.label_smoothing_factor}: L_SFT is the plain "
                "cross-entropy"
            )
