"""What a run says, once each, when its numbers tell that a setting does not fit it: the number, and what helps.

Every finding is logged, and kept in train/warnings.jsonl, which the report shows.
"""

import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from raft.text import distinct, words
from raft.train.config import RAFTConfig

LEAST_MASS = 0.9  # of the teacher, on its K tokens
WANTED_MASS = 0.95
MOST_TRUNCATED = 1 / 3  # of the rollouts
LAMBDAS = 0.1, 10.0
MOST_CLIPPED = 10.0  # times the clip
PATIENCE = 20  # steps that a number of single steps may be out of its range
ROLLOUTS = 32  # the last ones, which loops and scripts are looked for in
MOST_ODD = 1 / 4  # of them
MOST_GAP = 0.1  # between engine and trainer, nats a token; rounding of bf16 makes 0.04, of one rollout up to 0.07
GAPS = 3  # lines in a row
LEAST_WORDS = 14  # of a text that loops, which has 12 trigrams then
LOOP = 0.5  # share of distinct trigrams in it, at most

_ODD = {
    "loops": "repeat themselves: a lower learning_rate or rollout_temperature keeps the student readable",
    "script": "are mostly in another script than their question and its answer: look at rollouts.jsonl",
}


@dataclass(frozen=True)
class Finding:
    """A line of warnings.jsonl."""

    step: int
    name: str
    text: str


class Watch:
    """Looks at every line of metrics and every logged rollout. `known`: what an earlier life of the run has said."""

    def __init__(self, args: RAFTConfig, known: Iterable[str] = ()):
        self._args = args
        self._said = set(known)
        self._since: dict[str, int] = {}  # name -> steps in a row
        self._cut: list[tuple[float, int]] = []  # share of cut rollouts, rollouts, of lines that are looked at together
        self._odd: dict[str, deque[bool]] = {name: deque(maxlen=ROLLOUTS) for name in _ODD}

    def metrics(
        self,
        step: int,
        steps: int,  # that the line is the mean of
        line: Mapping[str, Any],
        most_lambda: float | None = None,
        k_for: Callable[[float], int | None] = lambda share: None,  # K that would hold this share of the teacher's mass
    ) -> list[Finding]:
        """What this line is the first to show. k_for is only asked where its answer is told."""
        looks: dict[str, Callable[[], str | None]] = {
            "teacher_mass": lambda: self._mass(line, k_for),
            "truncated": lambda: self._truncated(line, steps),
            "bound": lambda: self._bound(step, most_lambda),
            "lambda": lambda: self._lambda(line, steps),
            "grad_norm": lambda: self._clipped(line),
            "engine_gap": lambda: self._gap(line),
        }
        found = [
            Finding(step, name, text) for name, look in looks.items() if name not in self._said and (text := look())
        ]
        self._said.update(finding.name for finding in found)
        return found

    def _mass(self, line: Mapping[str, Any], k_for: Callable[[float], int | None]) -> str | None:
        mass = line.get("teacher_mass")
        if mass is None or mass >= LEAST_MASS or self._args.tail != "renormalize":
            return None
        enough = k_for(WANTED_MASS)
        wider = "a larger top_k" if enough is None else f"top_k {enough:,} would hold {WANTED_MASS:g}"
        return (
            f"the teacher's {self._args.top_k} tokens hold {mass:.2f} of its probability, and what is outside is not "
            f"distilled: {wider}, tail: bucket keeps the rest as one class"
        )

    def _truncated(self, line: Mapping[str, Any], steps: int) -> str | None:
        share, args = line.get("rollout_truncated"), self._args
        if share is None or args.mask_truncated:
            return None
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        self._cut.append((share, steps * rows * args.rollouts_per_prompt))
        drawn = sum(count for _, count in self._cut)
        if drawn < ROLLOUTS:
            return None
        cut = sum(share * count for share, count in self._cut) / drawn
        self._cut.clear()
        if cut <= MOST_TRUNCATED:
            return None
        return (
            f"{cut:.0%} of the rollouts were cut at {self._args.rollout_max_tokens} tokens: a larger rollout_max_tokens "
            "lets them end, mask_truncated leaves the cut ones out"
        )

    def _bound(self, step: int, most_lambda: float | None) -> str | None:
        bound = self._args.lambda_bound
        if bound is None or most_lambda is None or most_lambda < bound or self._args.fixed_lambda is not None:
            return None
        return f"lambda has reached its upper bound of {bound:g} by step {step}"

    def _lambda(self, line: Mapping[str, Any], steps: int) -> str | None:
        weight, (low, high) = line.get("lambda"), LAMBDAS
        if weight is None or self._args.fixed_lambda is not None:
            return None
        if not self._lasts("lambda", not low <= weight <= high, steps, PATIENCE):
            return None
        averaged = "gradients" if self._args.balances_gradients else "losses"
        side = f"above {high:g}" if weight > high else f"below {low:g}"
        return (
            f"lambda has been {side} for {PATIENCE} steps, now {weight:.3g}: one of the {averaged} is nearly 0 beside "
            "the other; lambda_min and lambda_max bound it, fixed_lambda fixes it"
        )

    def _clipped(self, line: Mapping[str, Any]) -> str | None:
        norm, clip = line.get("grad_norm"), self._args.max_grad_norm
        if norm is None or not clip:
            return None
        if not self._lasts("grad_norm", float(norm) > MOST_CLIPPED * clip, 1, PATIENCE):  # of the last step
            return None
        bound = ", or bound the weight of the distillation with lambda_max" if self._args.preset.distills else ""
        return (
            f"the gradient's norm was above {MOST_CLIPPED:g} times max_grad_norm ({clip:g}) at the last {PATIENCE} "
            f"logged steps, now {float(norm):.3g}: all are clipped to one length, whatever their losses say; raise "
            f"max_grad_norm{bound}"
        )

    def _gap(self, line: Mapping[str, Any]) -> str | None:
        gap = line.get("engine_gap")
        if gap is None or not self._lasts("engine_gap", not gap <= MOST_GAP, 1, GAPS):
            return None
        copies = "" if self._args.engine_weights == "copied" else "engine_weights: copied hands it all weights anew, "
        return (
            f"the rollout engine is not the model that is trained: their log-probabilities of its tokens are {gap:.2g} "
            f"apart on average in {GAPS} refreshes in a row, where rounding in bf16 makes 0.04; {copies}"
            "rollout_engine: hf generates with the model itself"
        )

    def rollouts(self, lines: Iterable[Mapping[str, Any]]) -> list[Finding]:
        """The same of lines of rollouts.jsonl."""
        found = []
        for line in lines:
            self._odd["loops"].append(loops(line["rollout"]))
            self._odd["script"].append(leaves_script(f"{line['question']} {line['answer']}", line["rollout"]))
            for name, seen in self._odd.items():
                if name not in self._said and len(seen) == ROLLOUTS and sum(seen) > MOST_ODD * ROLLOUTS:
                    self._said.add(name)
                    text = f"{sum(seen)} of the last {ROLLOUTS} rollouts {_ODD[name]}"
                    found.append(Finding(line["step"], name, text))
        return found

    def _lasts(self, name: str, outside: bool, steps: int, patience: int) -> bool:
        """Whether it has been so for that many steps in a row."""
        self._since[name] = self._since.get(name, 0) + steps if outside else 0
        return self._since[name] >= patience


def loops(text: str) -> bool:
    """Whether at least half of its trigrams of words came before; a text of a few words never loops."""
    tokens = words(text)
    return len(tokens) >= LEAST_WORDS and distinct(tokens) <= LOOP


def leaves_script(asked: str, text: str) -> bool:
    """Whether most letters of a text are of scripts that what was asked has none of."""
    known, said = _scripts(asked), _scripts(text)
    return bool(known) and said.total() >= 12 and sum(said[s] for s in known) < said.total() / 2


def _scripts(text: str) -> Counter[str]:
    """Letters by script, which is the first word of a letter's Unicode name: LATIN, CYRILLIC, CJK, ..."""
    return Counter(unicodedata.name(c, "UNKNOWN").split()[0] for c in text if c.isalpha())
