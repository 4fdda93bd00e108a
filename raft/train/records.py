"""metrics.jsonl and rollouts.jsonl: what is summed over a step, and lines that a resumed run neither repeats nor loses."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raft.runs import read_jsonl, write_text
from raft.train.losses import Batch, Scored
from raft.train.rollout import MicroBatch

# What every rank adds up in a step; the order is that of the tensor that is reduced over the ranks.
SUMS = (
    "loss",  # of the micro-batches, each already divided by the whole batch
    "sft",
    "sft_tokens",
    "kl",
    "kl_rollouts",
    "mass",
    "kl_tokens",
    "rollouts",
    "rollout_tokens",
    "truncated",
    "packed_tokens",
)


class Step:
    """What one optimizer step adds up on this rank. Tensors stay on the device until the step is over."""

    def __init__(self, device: torch.device, start: float = 0.0):
        self.start = start  # on the clock, in seconds
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        self.rollouts = torch.zeros((), device=device)  # scored ones, of all micro-batches and ranks
        self.weight: Tensor | None = None  # lambda of the last micro-batch
        self.rollout_losses: list[tuple[tuple[Scored, ...], Tensor]] = []

    def add(self, name: str, value: Tensor | float) -> None:
        self.sums[SUMS.index(name)] += value.detach() if isinstance(value, Tensor) else value

    def count_drawn(self, micro: MicroBatch) -> None:
        drawn = [completion for completions in micro.rollouts for completion in completions]
        self.add("rollouts", len(drawn))
        self.add("rollout_tokens", sum(len(completion.token_ids) for completion in drawn))
        self.add("truncated", sum(completion.finish_reason == "length" for completion in drawn))

    def count_seen(self, batch: Batch, sft: Tensor, kl: Tensor) -> None:
        self.add("sft", sft)
        self.add("sft_tokens", len(batch.sft_labels))
        self.add("kl", kl.sum())
        self.add("kl_rollouts", len(batch.scored))
        self.add("kl_tokens", len(batch.kl_positions))
        self.add("packed_tokens", batch.pack.tokens)
        self.rollout_losses.append((batch.scored, kl.detach()))

    def seen(self) -> Tensor:
        """[4] float64: L_SFT and its tokens, L_KL and its rollouts, summed over the micro-batches so far."""
        return self.sums[SUMS.index("sft") : SUMS.index("kl_rollouts") + 1]


class Window:
    """Means over the optimizer steps since the last logged line. Part of the checkpoint: a line may span one."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.totals: dict[str, float] = {}
        self.steps = 0
        self.kl_steps = 0

    def add(self, reduced: list[float], weight: float | None, seconds: dict[str, float], wall: float) -> None:
        """One optimizer step: `Step.sums` over all ranks, its lambda (None without a teacher) and its times in seconds."""
        sums = dict(zip(SUMS, reduced, strict=True))
        self.steps += 1
        step = {"loss": sums["loss"], "loss_sft": sums["sft"] / max(sums["sft_tokens"], 1), "wall": wall}
        step |= {name: sums[name] for name in SUMS[5:]} | {f"seconds_{part}": value for part, value in seconds.items()}
        if weight is not None:
            step["lambda"] = weight
        if sums["kl_rollouts"]:
            self.kl_steps += 1
            step["loss_kl"] = sums["kl"] / sums["kl_rollouts"]
        for name, value in step.items():
            self.totals[name] = self.totals.get(name, 0.0) + value

    def drain(self) -> dict[str, Any]:
        """The fields of a line, and an empty window. Losses and lambda are means over the steps, seconds are sums."""
        totals, steps, kl_steps = self.totals, max(self.steps, 1), self.kl_steps
        self.reset()
        line: dict[str, Any] = {
            "loss": totals.get("loss", 0.0) / steps,
            "loss_sft": totals.get("loss_sft", 0.0) / steps,
        }
        line["loss_kl"] = totals["loss_kl"] / kl_steps if kl_steps else None
        line["lambda"] = totals["lambda"] / steps if "lambda" in totals else None
        line["seconds"] = {name[8:]: value for name, value in totals.items() if name.startswith("seconds_")}
        line["tokens"] = int(totals.get("packed_tokens", 0))
        line["tokens_per_second"] = line["tokens"] / totals["wall"] if totals.get("wall") else 0.0
        drawn = totals.get("rollouts", 0.0)
        if drawn:
            line["rollout_length"] = totals["rollout_tokens"] / drawn
            line["rollout_truncated"] = totals["truncated"] / drawn
        if totals.get("kl_tokens"):
            line["teacher_mass"] = totals["mass"] / totals["kl_tokens"]
        return line

    def state_dict(self) -> dict[str, Any]:
        return {"totals": dict(self.totals), "steps": self.steps, "kl_steps": self.kl_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.totals, self.steps, self.kl_steps = dict(state["totals"]), state["steps"], state["kl_steps"]


def drop_after(path: Path, step: int) -> None:
    """Removes lines of later steps than `step`: those that a resumed run will write again."""
    if not path.exists():
        return
    lines = read_jsonl(path)
    kept = [line for line in lines if line["step"] <= step]
    if len(kept) < len(lines):
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
