"""The least time that each part of a step needs on a machine, from its products and the bytes it must move.

With F floating-point operations and B bytes a second, P parameters in the layers, H and V of the head, s bytes a
parameter, and per step D tokens drawn, the longest rollout L, R tokens that rollouts pass through the layers, T those
of the teacher, S those of the student, A answer tokens:

    rollout            max(2 P R / F + 2 H V D / F,  L (P + H V) s / B)     products, or the weights read once a token
    teacher            (2 P T + 2 H V D) / F
    forward_backward   (6 P S + 6 H V A + 6 H K D) / F                      the divergence needs K logits of a token
    optimizer          28 bytes a parameter / B                             AdamW in fp32: gradient, value, two averages
    refresh            0 shared, 2 (P + H V) s / B copied

Attention's own products, norms, activations and gradient checkpointing are left out, so nothing reaches these.
"""

from typing import Any

from bench.common.limits import Ceilings
from bench.steps.work import Work

ADAMW_BYTES = 28  # of fp32: value, gradient and two averages read, value and two averages written


def layer_parameters(work: Work, parameters: int) -> int:
    """All parameters but the embedding and the head, which may be one matrix."""
    tied = 1 if work.config.get("tie_word_embeddings") else 2
    return parameters - tied * work.config["hidden_size"] * work.vocabulary


def floor_s(
    work: Work, parameters: int, item_bytes: int, tokens: dict[str, Any], weights: str, limit: Ceilings
) -> dict[str, float]:
    """Seconds by part. `tokens`: means over steps, as `bench.steps.probes.Tokens` counts them, and "answer"."""
    layers, head = layer_parameters(work, parameters), work.config["hidden_size"] * work.vocabulary
    real, drawn = tokens["real"], tokens["completion"]
    products = 2 * layers * real["rollout"] + 2 * head * drawn
    reads = tokens["longest"] * (layers + head) * item_bytes
    sparse = 6 * work.config["hidden_size"] * work.k * drawn
    return {
        "rollout": max(products / limit.flops, reads / limit.bandwidth),
        "teacher": (2 * layers * real["teacher"] + 2 * head * drawn) / limit.flops,
        "forward_backward": (6 * layers * real["student"] + 6 * head * tokens["answer"] + sparse) / limit.flops,
        "optimizer": ADAMW_BYTES * parameters / limit.bandwidth,
        "refresh": 2 * parameters * item_bytes / limit.bandwidth if weights == "copied" else 0.0,
    }
