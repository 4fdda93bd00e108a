"""What the stores of a refinement have, read without opening them for a run: how much of the work is done."""

import random
from collections import defaultdict
from collections.abc import Collection, Container, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from raft.prompts import WORDINGS
from raft.refine.context import Models
from raft.refine.fuse import REFERENCE, fuse_chat
from raft.refine.lines import TextLine
from raft.refine.places import Places
from raft.refine.rewrite import rewrite_chat, template_options
from raft.refine.texts import Job, is_missing, text_key, text_request
from raft.rows import Row
from raft.runs.files import iter_jsonl, read_json
from raft.settings import RefineSettings

CHECKED = 200
"""Lines of the fusion whose keys are computed; all are, if one of these is of other settings or texts."""

Rewritings = Mapping[str, bool]
"""Row id -> whether there is a text; failures that are not asked for again are none."""
Fusions = Mapping[tuple[str, int], bool]
"""Row id and round -> whether there is a text."""


@dataclass
class Scored:
    """What one judge has scored."""

    texts: int = 0
    of_open_rows: int = 0
    """Those of the texts whose rows are not closed."""


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

    def rewritings(self) -> dict[str, bool]:
        """By the keys of the store."""
        found: dict[str, bool] = {}
        for row_id, line in self._rewritten(self.rows):
            found.pop(row_id, None)  # of two lines the newer one counts
            if not is_missing(line, self.settings, self.retry_failed):
                found[row_id] = line["text"] is not None
        return found

    def fusions(self, rewritings: Rewritings, rounds: int) -> dict[tuple[str, int], bool]:
        """Row id and round -> whether there is a text, for those that are not asked for again."""
        known: dict[tuple[str, int, str], bool] = {}
        for line in iter_jsonl(self.refine_dir / "fuse.jsonl"):
            if rewritings.get(line["id"]) and line["round"] <= rounds:
                place = line["id"], line["round"], line["key"]
                known.pop(place, None)
                if not is_missing(line, self.settings, self.retry_failed):
                    known[place] = line["text"] is not None
        drawn = random.Random(0).sample(list(known), min(CHECKED, len(known)))
        # A store is of one setting and text almost always: then a few keys tell, and the others cost nothing.
        fits = self._with_fuse_keys(drawn)
        if len(fits) < len(drawn):
            fits = self._with_fuse_keys(known)
            known = {place: there for place, there in known.items() if place in fits}
        return {(row_id, number): there for (row_id, number, _), there in known.items()}

    def scores(self, rewritings: Rewritings, fusions: Fusions, closed: Container[str]) -> dict[str, "Scored"]:
        """Judge -> how many texts it has scored. No keys are computed: the score of a text that another one has
        replaced counts too. closed: ids of rows for which nothing is left to do."""
        found: defaultdict[str, Scored] = defaultdict(Scored)
        seen = Places()
        for line in iter_jsonl(self.refine_dir / "judge.jsonl"):
            row_id, number = line["id"], line["round"]
            # Lines of earlier versions, which name no judge, are not read.
            if "judge" not in line or (line["score"] is None and self.retry_failed):
                continue
            if number == REFERENCE:
                judged = self.settings.margin is not None and row_id in rewritings
            else:
                judged = rewritings.get(row_id, False) if number == 0 else fusions.get((row_id, number), False)
            one = hash((line["judge"], row_id, number))
            if judged and one not in seen:
                seen.add(one, 0)
                found[line["judge"]].texts += 1
                found[line["judge"]].of_open_rows += row_id not in closed
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

    def _rewritten(self, ids: Container[str]) -> Iterator[tuple[str, TextLine]]:
        """Row id and line of each rewriting of these rows that was made with the present settings."""
        for line in iter_jsonl(self.refine_dir / "rewrite.jsonl"):
            row = self.rows.get(line["id"]) if line["id"] in ids else None
            if row is not None and line["key"] == self._rewrite_key(row):
                yield row["id"], line

    def _with_fuse_keys(self, places: Collection[tuple[str, int, str]]) -> set[tuple[str, int, str]]:
        """Those of the places (row id, round, key) whose key is that of the present settings and rewriting."""
        settings = self.settings
        texts = {row_id: line["text"] or "" for row_id, line in self._rewritten({row_id for row_id, _, _ in places})}
        found = set()
        for row_id, number, key in places:
            row = self.rows[row_id]
            chat = partial(fuse_chat, row, texts[row_id], WORDINGS[settings.prompts])
            job = Job(row_id, chat, template_options(row), number)
            request = text_request(settings, self.seed, "fuse", job, settings.fuse_temperature)
            if text_key(self.models.fuser.name, request) == key:
                found.add((row_id, number, key))
        return found
