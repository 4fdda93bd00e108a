"""Lines of metrics.jsonl and rollouts.jsonl. A resumed run neither repeats nor loses lines."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from raft.engines import Completion
from raft.runs import read_jsonl, write_text
from raft.train.clock import WALL
from raft.train.data import Example
from raft.train.lines import Figures, RolloutLine
from raft.train.losses import Batch
from raft.train.rollout import MicroBatch
from raft_kernels import TopKMetrics

# Names of the sums, in the order of the tensor that is summed over the ranks. For a number that is the same on all
# ranks, such as lambda or a count of steps, each rank adds 1 / ranks of it.
SUMS = (
    "loss",  # of the step, the sum over its packs
    "loss_sft",  # the same without lambda * L_KL
    "loss_kl",  # L_KL of the step
    "penalty",  # a term of the method, added once a step; each rank's share of it
    "kl_steps",  # steps with at least one scored rollout
    "lambda",
    "weighed",  # steps that have a lambda
    "mass",
    "mass_tokens",
    "student_mass",
    "teacher_entropy",
    "student_entropy",
    "top1_agreement",
    "statistics_tokens",
    "rollouts",
    "rollout_tokens",
    "truncated",
    "teacher_tokens",
    "packed_tokens",
    "flops",
    "gradient_sft",  # squared norm of the gradient of L_SFT, in steps that measure it
    "gradient_kl",  # the same for lambda * L_KL
    "gradient_steps",  # steps that measure the gradients
    "gradient_kl_steps",  # those of them with at least one scored rollout
    "engine_gap",
    "engine_gaps",  # rollouts that the gap was measured on
)


class WindowState(TypedDict):
    """A `Window` in a checkpoint."""

    totals: dict[str, float]  # the sums, by their names in SUMS; 0 where one is absent
    seconds: dict[str, float]  # by part, WALL included
    steps: int


class Window:
    """Sums over the optimizer steps since the last logged line, on this rank.

    They are part of the checkpoint, since a line may cover steps before and after one. Numbers on the device stay there
    until a line is written, so that no step waits for them.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._host: dict[str, float] = {}
        self._device: dict[str, Tensor] = {}
        self._seconds: dict[str, float] = {}  # of this rank, up to the last checkpoint
        self._most_lambda: Tensor | None = None
        self.steps = 0

    def add(self, name: str, value: Tensor | float) -> None:
        if isinstance(value, Tensor):
            value = value.detach().double()
            self._device[name] = self._device[name] + value if name in self._device else value
        else:
            self._host[name] = self._host.get(name, 0.0) + value

    def add_lambda(self, weight: Tensor, share: float) -> None:
        self.add("lambda", weight * share)
        self.add("weighed", share)
        most = self._most_lambda
        self._most_lambda = weight if most is None else torch.maximum(most, weight)

    def add_drawn(self, micro: MicroBatch) -> None:
        drawn = [s.completion for scored in micro.rollouts for s in scored]
        self.add("rollouts", len(drawn))
        self.add("rollout_tokens", sum(len(completion.token_ids) for completion in drawn))
        self.add("truncated", sum(completion.finish_reason == "length" for completion in drawn))

    def add_statistics(self, found: TopKMetrics) -> None:
        for name in ("student_mass", "teacher_entropy", "student_entropy", "top1_agreement"):
            self.add(name, getattr(found, name).sum())
        self.add("statistics_tokens", len(found.student_mass))

    def most_lambda(self) -> float | None:
        return None if self._most_lambda is None else self._most_lambda.item()

    def drain(self, reduce: Callable[[Tensor], Tensor], device: torch.device, seconds: dict[str, float]) -> "Line":
        """Returns the sums over all ranks and clears the window. seconds: from `Clock.reset`."""
        columns = [
            self._device.get(name, torch.zeros((), dtype=torch.float64, device=device)).to(device)
            + self._host.get(name, 0.0)
            for name in SUMS
        ]
        sums = dict(zip(SUMS, reduce(torch.stack(columns)).tolist(), strict=True))
        line = Line(sums, self.steps, _sum(self._seconds, seconds))
        self.clear()
        return line

    def state_dict(self, seconds: dict[str, float]) -> WindowState:
        """The sums, for a checkpoint. seconds: from `Clock.reset`; added to the window."""
        self._seconds = _sum(self._seconds, seconds)
        totals = {name: value.item() for name, value in self._device.items()}
        return {"totals": _sum(self._host, totals), "seconds": dict(self._seconds), "steps": self.steps}

    def load_state_dict(self, state: WindowState) -> None:
        """KeyError if another version wrote the state."""
        self.clear()
        self._host, self._seconds, self.steps = dict(state["totals"]), dict(state["seconds"]), state["steps"]


class Line:
    """Turns the sums of a window into the figures of a line of metrics.jsonl."""

    def __init__(self, sums: dict[str, float], steps: int, seconds: dict[str, float]):
        self.sums, self.steps = sums, max(steps, 1)
        self.wall = seconds.pop(WALL, 0.0)
        self.seconds = seconds

    def figures(self, peak_flops: float | None) -> Figures:
        """peak_flops: of all devices together, in FLOP/s; None if it is not known."""
        s = self.sums
        line: Figures = {
            "loss": s["loss"] / self.steps,
            "loss_sft": s["loss_sft"] / self.steps,
            "loss_kl": _ratio(s["loss_kl"], s["kl_steps"]),
            "lambda": _ratio(s["lambda"], s["weighed"]),
            "seconds": self.seconds,
            "share": {part: _ratio(value, self.wall) for part, value in self.seconds.items()},
            "tokens": int(s["packed_tokens"]),
            "tokens_per_second": _ratio(s["packed_tokens"], self.wall) or 0.0,
            "phase_tokens_per_second": {
                part: rate
                for part, name in (
                    ("rollout", "rollout_tokens"),
                    ("teacher", "teacher_tokens"),
                    ("forward_backward", "packed_tokens"),
                )
                if (rate := _ratio(s[name], self.seconds.get(part, 0.0)))
            },
            "tflops": (_ratio(s["flops"], self.wall) or 0.0) / 1e12,
        }
        if s["penalty"]:
            line["penalty"] = s["penalty"] / self.steps
        line["mfu"] = None if peak_flops is None else line["tflops"] * 1e12 / peak_flops
        if s["rollouts"]:
            line["rollout_length"] = s["rollout_tokens"] / s["rollouts"]
            line["rollout_truncated"] = s["truncated"] / s["rollouts"]
        if s["mass_tokens"]:
            line["teacher_mass"] = s["mass"] / s["mass_tokens"]
        if tokens := s["statistics_tokens"]:
            line["student_mass"] = s["student_mass"] / tokens
            line["teacher_entropy"] = s["teacher_entropy"] / tokens
            line["student_entropy"] = s["student_entropy"] / tokens
            line["top1_agreement"] = s["top1_agreement"] / tokens
        if s["gradient_steps"]:
            line["gradient_sft"] = math.sqrt(s["gradient_sft"] / s["gradient_steps"])
            steps = s["gradient_kl_steps"]
            line["gradient_kl"] = math.sqrt(s["gradient_kl"] / steps) if steps else None
        if s["engine_gaps"]:
            line["engine_gap"] = s["engine_gap"] / s["engine_gaps"]
        return line


class RolloutLog:
    """Rollouts to write to rollouts.jsonl. Their losses stay on the device until `drain`."""

    def __init__(self, most: int):
        """most: rollouts kept per optimizer step; -1 keeps all."""
        self.most = most
        self._held: list[tuple[int, Example, Completion, Tensor]] = []
        self._of_step: tuple[int, int] = (0, 0)

    def add(self, step: int, batch: Batch, losses: Tensor) -> None:
        """Adds the rollouts of a pack. losses: [S]."""
        kept = self._of_step[1] if self._of_step[0] == step else 0
        left = len(batch.scored) if self.most < 0 else self.most - kept
        losses = losses.detach()
        self._held += [(step, s.example, s.completion, losses[i]) for i, s in enumerate(batch.scored[: max(left, 0)])]
        self._of_step = (step, kept + len(batch.scored))

    def drain(self, decode: Callable[..., str]) -> list[RolloutLine]:
        held, self._held = self._held, []
        losses = torch.stack([loss for *_, loss in held]).tolist() if held else []
        return [
            {
                "step": step,
                "id": example.id,
                "question": example.question,
                "answer": decode(example.target, skip_special_tokens=True),
                "rollout": decode(completion.token_ids, skip_special_tokens=True),
                "finish_reason": completion.finish_reason,
                "teacher_prompt": decode(example.teacher_prompt),
                "loss_kl": loss,
            }
            for (step, example, completion, _), loss in zip(held, losses, strict=True)
        ]


def _ratio(a: float, b: float) -> float | None:
    return a / b if b else None


def _sum(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    return {name: a.get(name, 0.0) + b.get(name, 0.0) for name in (*a, *(n for n in b if n not in a))}


def drop_after(path: Path, step: int) -> None:
    """Removes the lines of steps after `step`, which a resumed run writes again."""
    if not path.exists():
        return
    lines = read_jsonl(path)
    kept = [line for line in lines if line["step"] <= step]
    if len(kept) < len(lines):
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
