"""All judges over the candidates of the refinement, with a line in the store for what each says of each text."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Thread

from raft.isolate import isolate, reason
from raft.judges import Candidate, Judge, Score
from raft.judges.agreement import Agreement
from raft.judges.base import checked
from raft.refine.lines import JudgeLine
from raft.refine.store import Store, row_key

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Panel:
    """An unusable score (raised, no number, outside [0, 1]) counts as a reject, which is 0, and is reported.

    A score is stored under its judge, so that another judge costs its own calls alone.
    """

    judges: Sequence[Judge]
    store: Store[JudgeLine]
    retry_failed: bool = False  # whether unusable scores are asked for again
    unusable: Counter[str] = field(default_factory=Counter)  # name of the judge -> scores that counted as 0
    flagged: dict[str, str] = field(default_factory=dict)  # row id -> what a judge says that people should look at
    agreement: Agreement = field(default_factory=Agreement)  # over the texts that all judges have scored
    warned: set[str] = field(default_factory=set)  # names of judges whose first unusable score was reported

    def judge(self, candidates: Sequence[Candidate], round: int, promising: Sequence[bool]) -> list[list[Score]]:
        """For each candidate the scores in the order of the judges. promising: whether to ask, for a candidate, the
        judges that are not free too. round: of fusion, 0 for rewritings; for people who read the store."""
        keys = [[self._key(judge, candidate) for candidate in candidates] for judge in self.judges]
        lines = [
            [self._stored(one.row_id, key) for one, key in zip(candidates, of_judge, strict=True)] for of_judge in keys
        ]
        missing = [
            [i for i, line in enumerate(of_judge) if line is None and (promising[i] or getattr(judge, "free", False))]
            for judge, of_judge in zip(self.judges, lines, strict=True)
        ]
        made = self._ask_all([[candidates[i] for i in places] for places in missing])
        scores = [dict(zip(places, found, strict=True)) for places, found in zip(missing, made, strict=True)]
        for i, candidate in enumerate(candidates):  # so that the order of the lines depends on no batch
            for j, judge in enumerate(self.judges):
                if i in scores[j]:
                    lines[j][i] = self._kept(judge, candidate, keys[j][i], round, scores[j][i])
        for judge, of_judge in zip(self.judges, lines, strict=True):
            self.unusable[judge.name] += sum(line is not None and line["score"] is None for line in of_judge)
            self.flagged.update({line["id"]: line["flag"] for line in of_judge if line is not None and "flag" in line})
        judged = [[_score(line) for line in of_one if line is not None] for of_one in zip(*lines, strict=True)]
        for found in judged:
            values = [score.value for score in found if score.value is not None]
            if len(values) == len(self.judges):
                self.agreement.add(values)
        return judged

    def _ask_all(self, asked: Sequence[Sequence[Candidate]]) -> list[list[Score | Exception]]:
        """What each judge says of its candidates. Those that wait for a server wait side by side, in threads that do
        not keep a process alive that is stopped."""
        found: dict[int, list[Score | Exception] | BaseException] = {}

        def ask(j: int) -> None:
            try:
                found[j] = isolate(self.judges[j].score, asked[j])
            except BaseException as error:  # noqa: BLE001  # raised below, in the thread of the caller
                found[j] = error

        waiting = [j for j, judge in enumerate(self.judges) if getattr(judge, "waits", False) and asked[j]]
        threads = [Thread(target=ask, args=(j,), name=self.judges[j].name, daemon=True) for j in waiting]
        for thread in threads:
            thread.start()
        for j in set(range(len(asked))) - set(waiting):
            ask(j)
        for thread in threads:
            thread.join()
        results = []
        for j in range(len(asked)):
            result = found[j]
            if isinstance(result, BaseException):
                raise result
            results.append(result)
        return results

    def _stored(self, row_id: str, key: str) -> JudgeLine | None:
        line = self.store.get(row_id, key)
        return None if line is not None and line["score"] is None and self.retry_failed else line

    def _key(self, judge: Judge, candidate: Candidate) -> str:
        texts = [candidate.question, candidate.reference, candidate.rewritten, candidate.text]
        return row_key(judge.name, {"version": judge.version}, texts)

    def _kept(self, judge: Judge, candidate: Candidate, key: str, round: int, found: Score | Exception) -> JudgeLine:
        """The line of a score, stored unless it may be another one next time, such as after a lost connection."""
        raised = isinstance(found, Exception)
        score = Score(None, problem=reason(found), lasting=False) if isinstance(found, Exception) else checked(found)
        line = JudgeLine(id=candidate.row_id, key=key, round=round, judge=judge.name, score=score.value)
        if score.reason is not None:
            line["reason"] = score.reason
        if score.value is None and score.problem is not None:
            line["problem"] = score.problem
            if judge.name not in self.warned:
                self.warned.add(judge.name)
                log.warning(
                    "judge %s: unusable score for row %s counts as 0: %s", judge.name, candidate.row_id, score.problem
                )
        if score.flag is not None:
            line["flag"] = score.flag
        if not raised and (score.value is not None or score.lasting):
            self.store.add(line)
        return line


def _score(line: JudgeLine) -> Score:
    return Score(line["score"], line.get("reason"), line.get("problem"), flag=line.get("flag"))
