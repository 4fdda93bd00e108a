"""metrics.jsonl and rollouts.jsonl: what is summed over a step, and lines that a resumed run neither repeats nor loses."""

import json
from pathlib import Path
from typing import Any

from raft.runs import read_jsonl, write_text

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


class Window:
    """Means over the optimizer steps since the last logged line. Part of the checkpoint: a line may span one."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}
        self.steps = 0
        self.kl_steps = 0

    def add(self, sums: dict[str, float], weight: float | None, seconds: dict[str, float], wall: float) -> None:
        """One optimizer step: its sums over all ranks, its lambda (None without a teacher) and its times in seconds."""
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
        self.__init__()  # type: ignore[misc]
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
