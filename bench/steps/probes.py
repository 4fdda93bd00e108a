"""What is watched in a step, in every trainer alike: where its time goes, and which tokens pass through the layers."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

PHASES = ("rollout", "teacher", "student")


class Stopwatch:
    """Seconds by part; a part does not count the parts within it. On a GPU every change waits for the device."""

    def __init__(self, device: str):
        self._cuda = device == "cuda"
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._mark = self.now()

    def now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def start(self, name: str) -> None:
        self._count()
        self._open.append(name)

    def stop(self) -> None:
        self._count()
        self._open.pop()

    def since_mark(self, name: str) -> None:
        """Counts the time since the last part ended as `name`."""
        now = self.now()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._mark
        self._mark = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.start(name)
        try:
            yield
        finally:
            self.stop()

    def take(self) -> dict[str, float]:
        seconds, self.seconds = self.seconds, {}
        return seconds

    def _count(self) -> None:
        if self._open:
            self.since_mark(self._open[-1])
        else:
            self._mark = self.now()


class Tokens:
    """Tokens that pass through the decoder's layers in a step, by phase: those of the sequences, and padding.

    Teacher and student: what an attention mask of shape [rows, tokens] leaves out is padding; without one nothing is.
    Rollouts: a prompt of P and a completion of C tokens need P + C - 1; whatever else is fed, on the left of shorter
    prompts or to rows that have ended already, is padding. An engine that runs no module of ours feeds no such token.
    """

    def __init__(self) -> None:
        self._generating = False
        self.take()

    def take(self) -> dict[str, Any]:
        """{"real": by phase, "padding": by phase, "completions": number, "completion": tokens, "longest": tokens}"""
        found = getattr(self, "_found", {})
        fed = found.pop("fed", 0)
        if fed:
            found["padding"]["rollout"] = fed - found["real"]["rollout"]
        self._found: dict[str, Any] = {
            "real": dict.fromkeys(PHASES, 0),
            "padding": dict.fromkeys(PHASES, 0),
            "completions": 0,
            "completion": 0,
            "longest": 0,
            "fed": 0,
        }
        return found

    def watch(self, decoder: nn.Module, phase: str) -> None:
        """Counts at the decoder of a model, and of the student's also what its own `generate` feeds."""

        def count(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
            ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
            if phase == "student" and self._generating:
                self._found["fed"] += ids.numel()
                return
            real = int(mask.sum()) if mask is not None and mask.dim() == 2 else ids.numel()
            self._found["real"][phase] += real
            self._found["padding"][phase] += ids.numel() - real

        decoder.register_forward_pre_hook(count, with_kwargs=True)

    @contextmanager
    def generating(self) -> Iterator[None]:
        self._generating = True
        try:
            yield
        finally:
            self._generating = False

    def drawn(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> None:
        lengths = [len(ids) for ids in completions]
        self._found["completions"] += len(lengths)
        self._found["completion"] += sum(lengths)
        self._found["longest"] += max(lengths, default=0)
        self._found["real"]["rollout"] += sum(len(ids) for ids in prompts) + sum(lengths) - len(lengths)


def within(owner: Any, name: str, context: Callable[[], AbstractContextManager[object]]) -> None:
    """From here on each call of this method of this object happens within a context."""
    method = getattr(owner, name)

    def run(*args: Any, **kwargs: Any) -> Any:
        with context():
            return method(*args, **kwargs)

    setattr(owner, name, run)


def observe(owner: Any, name: str, see: Callable[[Any, Any], None]) -> None:
    """From here on `see` gets the first argument and the result of each call of this method of this object."""
    method = getattr(owner, name)

    def run(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        see(args[0], result)
        return result

    setattr(owner, name, run)
