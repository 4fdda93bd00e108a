"""Floating-point operations of a training step, and the peak FLOP/s of devices, for the model FLOPs utilisation (MFU).

Counted as in the PaLM report (Chowdhery et al. 2022, appendix B), without recomputation. A forward takes 2 for each
weight of the layers and token, 4 * width * (length / 2) for each token in causal attention, and 2 for each weight of
the head and position with logits. A backward takes twice as many.
"""

import re
from collections.abc import Iterable

import torch
from transformers import PretrainedConfig, PreTrainedModel

from raft.models.packing import Span

# Dense bf16 TFLOP/s from the vendors' data sheets. The first key contained in the device's name applies.
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "L40S": 362.0,
}


class Flops:
    """FLOPs of one model."""

    def __init__(self, model: PreTrainedModel):
        """`model`: a causal language model, without wrappers."""
        config = model.config.get_text_config()
        head = model.get_output_embeddings().weight
        embeddings = {id(head), id(model.get_input_embeddings().weight)}
        weights = {n: p for n, p in model.named_parameters() if id(p) not in embeddings and ".lora_" not in n}
        routed = _routed_share(config)
        self.layers = 2 * sum(p.numel() * (routed if ".experts." in n else 1) for n, p in weights.items())
        self.head = 2 * head.numel()
        heads = config.num_attention_heads
        width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
        self.attention = 4 * config.num_hidden_layers * width
        # FLOPs of forward plus backward, as a multiple of the forward. Frozen weights need no weight gradient.
        self.training_share = 3.0 if all(p.requires_grad for p in weights.values()) else 2.0

    def forward(self, spans: Iterable[Span], positions: int) -> float:
        """FLOPs of one forward over the spans of a pack, with logits at `positions` positions."""
        spans = list(spans)
        pairs = sum(n * (before + (n + 1) / 2) for before, n in spans)
        return self.layers * sum(n for _, n in spans) + self.attention * pairs + self.head * positions


def _routed_share(config: PretrainedConfig) -> float:
    """Share of the experts of a mixture-of-experts layer that process a token; 1 for dense models."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = next((found for name in names if (found := getattr(config, name, None))), None)
    used = getattr(config, "num_experts_per_tok", None)
    return used / experts if used and experts else 1.0


def peak_flops(device: torch.device, peak_tflops: float | None = None) -> float | None:
    """Peak FLOP/s of one device: `peak_tflops` if given, else from the table; None if it is not listed."""
    if peak_tflops is not None:
        return peak_tflops * 1e12
    if device.type != "cuda":
        return None
    return named_peak(torch.cuda.get_device_name(device))


def named_peak(name: str) -> float | None:
    """Peak FLOP/s of a GPU by its name, such as "NVIDIA H100 80GB HBM3"."""
    found = (tflops * 1e12 for part, tflops in PEAK_TFLOPS.items() if re.search(rf"\b{part}\b", name))
    return next(found, None)
