"""What the stores of a refinement have, read without opening them for a run: how much of the work is done."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from raft.prompts import WORDINGS
from raft.refine.context import Models
from raft.refine.fuse import REFERENCE, fuse_chat
from raft.refine.lines import TextLine
from raft.refine.rewrite import rewrite_chat, template_options
from raft.refine.texts import Job, is_missing, text_key, text_request
from raft.rows import Row
from raft.runs.files import iter_jsonl, read_json
from raft.settings import RefineSettings

CHECKED = 200
"""Lines of the fusion whose keys are computed; all are, if one of these is of other settings or texts."""

Rewritings = Mapping[str, TextLine]
"""Row id -> what there is."""
Fusions = Mapping[tuple[str, int], bool]
"""Row id and round -> whether there is a text."""


@dataclass(frozen=True)
class Stored:
    """What a run takes from the stores of `refine_dir`. rows: row id -> row, of those with a wording to change."""

    rows: Mapping[str, Row]
    models: Models
    settings: RefineSettings
    refine_dir: Path
    seed: int
    """Of the run."""
    retry_failed: bool

    def rewritings(self) -> dict[str, TextLine]:
        """Row id -> the rewriting, or its failure; by the keys of the store."""
        found: dict[str, TextLine] = {}
        for line in iter_jsonl(self.refine_dir / "rewrite.jsonl"):
            row = self.rows.get(line["id"])
            if row is not None and line["key"] == self._rewrite_key(row):
                found[row["id"]] = line  # of two lines the newer one counts
        return {i: line for i, line in found.items() if not is_missing(line, self.settings, self.retry_failed)}

    def fusions(self, rewritings: Rewritings, rounds: int) -> dict[tuple[str, int], bool]:
        """Row id and round -> whether there is a text, for those that are not asked for again."""
        known: dict[tuple[str, int, str], bool] = {}
        for line in iter_jsonl(self.refine_dir / "fuse.jsonl"):
            rewriting = rewritings.get(line["id"])
            if rewriting is not None and rewriting["text"] is not None and line["round"] <= rounds:
                place = line["id"], line["round"], line["key"]
                known.pop(place, None)
                if not is_missing(line, self.settings, self.retry_failed):
                    known[place] = line["text"] is not None
        drawn = random.Random(0).sample(list(known), min(CHECKED, len(known)))
        # A store is of one setting and text almost always: then a few keys tell, and the others cost nothing.
        if not all(self._has_fuse_key(place, rewritings) for place in drawn):
            known = {place: there for place, there in known.items() if self._has_fuse_key(place, rewritings)}
        return {(row_id, number): there for (row_id, number, _), there in known.items()}

    def scores(self, rewritings: Rewritings, fusions: Fusions) -> set[tuple[str, str, int]]:
        """Judge, row id and round of each text that was scored. No keys are computed: the score of a text that another
        one has replaced counts too."""
        judged = {(row_id, 0) for row_id, line in rewritings.items() if line["text"] is not None}
        judged |= {place for place, there in fusions.items() if there}
        if self.settings.margin is not None:
            judged |= {(row_id, REFERENCE) for row_id in rewritings}
        found = set()
        for line in iter_jsonl(self.refine_dir / "judge.jsonl"):
            place = line["id"], line["round"]
            # Lines of earlier versions, which name no judge, are not read.
            if place in judged and "judge" in line and (line["score"] is not None or not self.retry_failed):
                found.add((line["judge"], *place))
        return found

    def finished(self, rewritings: Rewritings, fusions: Fusions) -> set[str]:
        """Rows for which nothing is left to do, as a run has found that came to its end with the same settings. None
        where its judges had scores that may be asked for again."""
        path = self.refine_dir / "diagnostics.json"
        if self.retry_failed or not path.exists():
            return set()
        if any(judge["unusable"] for judge in read_json(path)["judges"].values()):
            return set()
        failed = {line["id"] for line in iter_jsonl(self.refine_dir / "failed.jsonl")}
        return {
            line["id"]
            for line in iter_jsonl(self.refine_dir / "fused.jsonl")
            if line["id"] in rewritings
            and line["id"] not in failed
            and all((line["id"], number) in fusions for number in range(1, line["rounds"] + 1))
        }

    def _rewrite_key(self, row: Row) -> str:
        settings = self.settings
        job = Job(row["id"], partial(rewrite_chat, row, WORDINGS[settings.prompts]), template_options(row))
        request = text_request(settings, self.seed, "rewrite", job, settings.rewrite_temperature)
        return text_key(self.models.rewriter.name, request)

    def _has_fuse_key(self, place: tuple[str, int, str], rewritings: Rewritings) -> bool:
        (row_id, number, key), settings = place, self.settings
        row, rewritten = self.rows[row_id], rewritings[row_id]["text"] or ""
        chat = partial(fuse_chat, row, rewritten, WORDINGS[settings.prompts])
        job = Job(row_id, chat, template_options(row), number)
        request = text_request(settings, self.seed, "fuse", job, settings.fuse_temperature)
        return text_key(self.models.fuser.name, request) == key
