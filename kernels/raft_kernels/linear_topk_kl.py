"""linear_topk_kl: from both models' hidden states and heads to the loss per token, in one call."""

from typing import Literal

from torch import Tensor
from torch.distributed import ProcessGroup

from .topk import linear_topk
from .topk_kl import topk_kl


def linear_topk_kl(
    student_hidden: Tensor,  # (..., H)
    student_weight: Tensor,  # (V, H)
    teacher_hidden: Tensor,  # (..., H_teacher)
    teacher_weight: Tensor,  # (V, H_teacher)
    *,
    k: int = 512,
    temperature: float = 1.5,
    teacher_temperature: float | None = None,
    tail: str = "renormalize",
    bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    logit_scale: float = 1.0,
    teacher_logit_scale: float | None = None,
    softcap: float | None = None,
    teacher_softcap: float | None | Literal["same"] = "same",
    vocab_size: int | None = None,
    mask: Tensor | None = None,
    group: ProcessGroup | None = None,
    backend: str | None = None,
    **options,
) -> Tensor:  # (...)
    """`linear_topk` on the teacher, then `topk_kl` on the student. `options` are those of `topk_kl`.

    `logit_scale` and `softcap` belong to an architecture, so the teacher has the student's unless `teacher_logit_scale`
    or `teacher_softcap` say otherwise; a bias is a parameter of one model, so `bias` is the student's alone.
    """
    if vocab_size is None and student_weight.shape[0] != teacher_weight.shape[0]:
        raise ValueError(
            f"linear_topk_kl: the student's head has {student_weight.shape[0]} rows, the teacher's "
            f"{teacher_weight.shape[0]}; say with vocab_size how many of them are tokens"
        )
    t = temperature if teacher_temperature is None else teacher_temperature
    teacher = linear_topk(
        teacher_hidden,
        teacher_weight,
        k,
        bias=teacher_bias,
        logit_scale=logit_scale if teacher_logit_scale is None else teacher_logit_scale,
        softcap=softcap if teacher_softcap == "same" else teacher_softcap,
        vocab_size=vocab_size,
        mask=mask,
        log_partition_at=t if tail == "bucket" else None,
        group=group,
        backend=backend,
    )
    return topk_kl(
        student_hidden,
        student_weight,
        teacher,
        temperature=temperature,
        teacher_temperature=teacher_temperature,
        tail=tail,
        bias=bias,
        logit_scale=logit_scale,
        softcap=softcap,
        vocab_size=vocab_size,
        mask=mask,
        group=group,
        backend=backend,
        **options,
    )
