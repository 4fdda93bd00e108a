"""All judges over the candidates of the refinement, with a line in the store for every candidate."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from raft.isolate import isolate, reason
from raft.judges import Candidate, Judge, Score
from raft.judges.base import checked
from raft.refine.lines import JudgeLine
from raft.refine.store import Store, row_key

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Panel:
    """An unusable score (raised, no number, outside [0, 1]) counts as a reject, which is 0, and is reported."""

    judges: Sequence[Judge]
    store: Store[JudgeLine]
    unusable: Counter[str] = field(default_factory=Counter)  # name of the judge -> scores that counted as 0
    warned: set[str] = field(default_factory=set)  # names of judges whose first unusable score was reported

    def judge(self, candidates: Sequence[Candidate], round: int) -> list[list[Score]]:
        """For each candidate the scores in the order of the judges. round: of fusion, 0 for rewritings; for people who
        read the store."""
        keys = [self._key(candidate) for candidate in candidates]
        lines = [self.store.get(one.row_id, key) for one, key in zip(candidates, keys, strict=True)]
        missing = [i for i, line in enumerate(lines) if line is None]
        made = {judge.name: isolate(judge.score, [candidates[i] for i in missing]) for judge in self.judges}
        for place, i in enumerate(missing):
            found = {name: scores[place] for name, scores in made.items()}
            line = self._line(candidates[i], keys[i], round, found)
            # What was raised, a lost connection say, may go well after a restart.
            if not any(isinstance(score, Exception) for score in found.values()):
                self.store.add(line)
            lines[i] = line
        judged = [self._scores(line) for line in lines if line is not None]
        self.unusable.update(
            judge.name
            for scores in judged
            for judge, score in zip(self.judges, scores, strict=True)
            if score.value is None
        )
        return judged

    def _key(self, candidate: Candidate) -> str:
        versions = [[judge.name, judge.version] for judge in self.judges]
        texts = [candidate.question, candidate.reference, candidate.rewritten, candidate.text]
        return row_key("judges", {"judges": versions}, texts)

    def _line(self, candidate: Candidate, key: str, round: int, found: dict[str, Score | Exception]) -> JudgeLine:
        scores = {
            name: Score(None, problem=reason(score)) if isinstance(score, Exception) else checked(score)
            for name, score in found.items()
        }
        unusable = {name: score.problem for name, score in scores.items() if score.problem is not None}
        for name, why in unusable.items():
            if name not in self.warned:
                self.warned.add(name)
                log.warning("judge %s: unusable score for row %s counts as 0: %s", name, candidate.row_id, why)
        reasons = {name: score.reason for name, score in scores.items() if score.reason is not None}
        values = {name: score.value or 0.0 for name, score in scores.items()}
        line = JudgeLine(id=candidate.row_id, key=key, round=round, scores=values, unusable=unusable)
        if reasons:
            line["reasons"] = reasons
        return line

    def _scores(self, line: JudgeLine) -> list[Score]:
        return [
            Score(
                None if judge.name in line["unusable"] else line["scores"][judge.name],
                line.get("reasons", {}).get(judge.name),
                line["unusable"].get(judge.name),
            )
            for judge in self.judges
        ]
