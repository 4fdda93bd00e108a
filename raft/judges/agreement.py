"""How far several judges agree."""

from collections.abc import Sequence


class Agreement:
    """Krippendorff's alpha on an interval scale of all texts that every judge has scored, in constant memory.

    Without missing scores alpha is 1 less the variance within texts over that of all scores. Packages for the general
    case need a matrix of all distinct scores for every text.
    """

    def __init__(self) -> None:
        self._texts = self._scores = 0
        self._first: float | None = None  # scores are summed less this one, for equal ones to give zeros
        self._sum = self._squares = self._within = 0.0

    def add(self, scores: Sequence[float]) -> None:
        """scores: of one text, by each judge; of as many judges every time."""
        if self._first is None:
            self._first = scores[0]
        shifted = [score - self._first for score in scores]
        n, mean = len(shifted), sum(shifted) / len(shifted)
        if n > 1:
            self._within += sum((score - mean) ** 2 for score in shifted) / (n - 1)
        self._texts += 1
        self._scores += n
        self._sum += sum(shifted)
        self._squares += sum(score * score for score in shifted)

    @property
    def alpha(self) -> float | None:
        """1 is perfect, 0 is chance. None for one judge, and where all scores are equal but for rounding."""
        if self._scores <= self._texts:
            return None
        variance = (self._squares - self._sum**2 / self._scores) / (self._scores - 1)
        # Nine digits: the others depend on the order in which texts were added.
        return round(1 - self._within / self._texts / variance, 9) if variance > 1e-12 else None
