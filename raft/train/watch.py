"""Warnings when the numbers of a training show that a setting does not fit: the number and a remedy, once a run.

They are logged and written to train/warnings.jsonl, which the report shows.
"""

import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable

from raft.text import distinct, words
from raft.train.config import RAFTConfig
from raft.train.lines import MetricsLine, RolloutLine, WarningLine

LEAST_MASS = 0.9  # smallest share of the teacher's probability on its K tokens that gives no warning
WANTED_MASS = 0.95  # share that the recommended K reaches
MOST_TRUNCATED = 1 / 3  # largest share of cut rollouts
LAMBDAS = 0.1, 10.0  # range of lambda
MOST_CLIPPED = 10.0  # largest gradient norm, as a multiple of max_grad_norm
PATIENCE = 20  # steps in a row that lambda or the gradient norm must be out of range
ROLLOUTS = 32  # number of last rollouts that are searched for loops and other scripts
MOST_ODD = 1 / 4  # largest share of these
MOST_GAP = 0.1  # largest gap of engine and trainer, in nats per token; bf16 rounding gives 0.04, one rollout up to 0.07
GAPS = 3  # lines in a row with a larger gap
LEAST_WORDS = 14  # words of a text that can count as a loop; it then has 12 trigrams
LOOP = 0.5  # largest share of distinct trigrams in a loop

_ODD = {
    "loops": "repeat themselves: a lower learning_rate or rollout_temperature keeps the student readable",
    "script": "are mostly in another script than their question and its answer: look at rollouts.jsonl",
}


class Watch:
    """Checks every line of metrics and every logged rollout. known: names of warnings given before a resume."""

    def __init__(self, args: RAFTConfig, known: Iterable[str] = ()):
        self._args = args
        self._said = set(known)
        self._since: dict[str, int] = {}  # name -> steps in a row
        self._cut: list[tuple[float, int]] = []  # (share of cut rollouts, rollouts) of the lines since the last check
        self._odd: dict[str, deque[bool]] = {name: deque(maxlen=ROLLOUTS) for name in _ODD}

    def metrics(
        self,
        step: int,
        steps: int,  # number of steps that the line averages over
        line: MetricsLine,
        most_lambda: float | None = None,
        k_for: Callable[[float], int | None] = lambda share: None,  # the K that holds this share of the teacher's mass
    ) -> list[WarningLine]:
        """New warnings for a line of metrics.jsonl. k_for is called only if the warning needs it."""
        looks: dict[str, Callable[[], str | None]] = {
            "teacher_mass": lambda: self._mass(line, k_for),
            "truncated": lambda: self._truncated(line, steps),
            "bound": lambda: self._bound(step, most_lambda),
            "lambda": lambda: self._lambda(line, steps),
            "grad_norm": lambda: self._clipped(line),
            "engine_gap": lambda: self._gap(line),
        }
        found = [
            WarningLine(step=step, name=name, text=text)
            for name, look in looks.items()
            if name not in self._said and (text := look())
        ]
        self._said.update(finding["name"] for finding in found)
        return found

    def _mass(self, line: MetricsLine, k_for: Callable[[float], int | None]) -> str | None:
        mass = line.get("teacher_mass")
        if mass is None or mass >= LEAST_MASS or self._args.tail != "renormalize":
            return None
        enough = k_for(WANTED_MASS)
        wider = "a larger top_k" if enough is None else f"top_k {enough:,} would hold {WANTED_MASS:g}"
        return (
            f"the teacher's {self._args.top_k} tokens hold {mass:.2f} of its probability, and what is outside is not "
            f"distilled: {wider}, tail: bucket keeps the rest as one class"
        )

    def _truncated(self, line: MetricsLine, steps: int) -> str | None:
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
            f"{cut:.0%} of the rollouts were cut at {self._args.rollout_max_tokens} tokens: a larger "
            "rollout_max_tokens lets them end, mask_truncated leaves the cut ones out"
        )

    def _bound(self, step: int, most_lambda: float | None) -> str | None:
        bound = self._args.lambda_bound
        if bound is None or most_lambda is None or most_lambda < bound or self._args.fixed_lambda is not None:
            return None
        return f"lambda has reached its upper bound of {bound:g} by step {step}"

    def _lambda(self, line: MetricsLine, steps: int) -> str | None:
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

    def _clipped(self, line: MetricsLine) -> str | None:
        norm, clip = line.get("grad_norm"), self._args.max_grad_norm
        if norm is None or not clip:
            return None
        # The norm in a line is that of its last step.
        if not self._lasts("grad_norm", float(norm) > MOST_CLIPPED * clip, 1, PATIENCE):
            return None
        bound = ", or bound the weight of the distillation with lambda_max" if self._args.preset.distills else ""
        return (
            f"the gradient's norm was above {MOST_CLIPPED:g} times max_grad_norm ({clip:g}) at the last {PATIENCE} "
            f"logged steps, now {float(norm):.3g}: all are clipped to one length, whatever their losses say; raise "
            f"max_grad_norm{bound}"
        )

    def _gap(self, line: MetricsLine) -> str | None:
        gap = line.get("engine_gap")
        if gap is None or not self._lasts("engine_gap", not gap <= MOST_GAP, 1, GAPS):
            return None
        copies = "" if self._args.engine_weights == "copied" else "engine_weights: copied hands it all weights anew, "
        return (
            f"the rollout engine is not the model that is trained: their log-probabilities of its tokens are {gap:.2g} "
            f"apart on average in {GAPS} refreshes in a row, where rounding in bf16 makes 0.04; {copies}"
            "rollout_engine: hf generates with the model itself"
        )

    def rollouts(self, lines: Iterable[RolloutLine]) -> list[WarningLine]:
        """New warnings for lines of rollouts.jsonl."""
        found = []
        for line in lines:
            self._odd["loops"].append(loops(line["rollout"]))
            self._odd["script"].append(leaves_script(f"{line['question']} {line['answer']}", line["rollout"]))
            for name, seen in self._odd.items():
                if name not in self._said and len(seen) == ROLLOUTS and sum(seen) > MOST_ODD * ROLLOUTS:
                    self._said.add(name)
                    text = f"{sum(seen)} of the last {ROLLOUTS} rollouts {_ODD[name]}"
                    found.append(WarningLine(step=line["step"], name=name, text=text))
        return found

    def _lasts(self, name: str, outside: bool, steps: int, patience: int) -> bool:
        """Whether the number `name` has been outside its range for `patience` steps in a row."""
        self._since[name] = self._since.get(name, 0) + steps if outside else 0
        return self._since[name] >= patience


def loops(text: str) -> bool:
    """Whether at least half of the text's word trigrams are repetitions; False for short texts."""
    tokens = words(text)
    return len(tokens) >= LEAST_WORDS and distinct(tokens) <= LOOP


def leaves_script(asked: str, text: str) -> bool:
    """Whether most letters of `text` are of scripts that `asked` does not contain."""
    known, said = _scripts(asked), _scripts(text)
    return bool(known) and said.total() >= 12 and sum(said[s] for s in known) < said.total() / 2


def _scripts(text: str) -> Counter[str]:
    """Number of letters by script: the first word of their Unicode name, such as LATIN, CYRILLIC or CJK."""
    return Counter(unicodedata.name(c, "UNKNOWN").split()[0] for c in text if c.isalpha())
