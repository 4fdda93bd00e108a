"""The logic of the stages and of their restart; engine, embedder and judges are small deterministic programs.

The floor is real. Texts carry their numbers in letters, as in digits they would be facts that no reference has, and the
measures of the floor are lax unless they are the subject. The prompts are the plain ones, whose words do not change.
"""

import json
import os
import re
import shutil
import signal
from collections import Counter
from typing import ClassVar

import numpy as np
import pytest

from raft import prompts
from raft.chat import LocalChat
from raft.engines import Completion
from raft.errors import ConfigError, EngineError, InputError
from raft.judges import Program, Score, default_judges
from raft.prompts import WORDINGS
from raft.refine import refine
from raft.refine.acceptance import REASONS
from raft.refine.context import Models
from raft.refine.lines import Diagnostics, FailedLine, FusedRow, JudgeLine, SimilarityLine, TextLine
from raft.refine.refinement import preview_text
from raft.refine.rewrite import rewrite_chat
from raft.refine.store import row_key
from raft.refine.texts import text_seed
from raft.rows import normalize_rows, read_rows
from raft.runs import JsonlAppender, Run, read_json, read_jsonl
from raft.settings import RefineSettings
from tests.tiny import tokenizer as make_tokenizer

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the tests fork
TOKENIZER = make_tokenizer()
CONTRACT = ["id", "question", "answer", "rewritten", "similarity", "kept", "fused_answer", "judge_scores", "rounds"]
CONTRACT += ["rejected"]
FILES = ("rewrite", "filter", "fuse", "judge", "failed", "fused")


class Talker:
    """An engine whose text is a function of the prompt and of the number that its request draws by its seed."""

    name = "talker"
    tokenizer = TOKENIZER

    def __init__(self, say):
        self.say = say  # (stage, prompt, number from 0 to 999) -> text, None for one that is cut, or an exception
        self.calls = Counter()

    def generate(self, prompt_ids, sampling, seeds):
        return [self._one(ids, sampling, seed) for ids, seed in zip(prompt_ids, seeds, strict=True)]

    def _one(self, ids, sampling, seed):
        prompt = TOKENIZER.decode(ids)
        stage = "rewrite" if "Rewrite the reference" in prompt else "fuse"
        self.calls[stage, re.search(r"Question: (.*)\n", prompt)[1]] += 1
        text = self.say(stage, prompt, seed % 1000 if sampling.temperature else 0)
        if isinstance(text, BaseException):
            raise text
        if text is None:
            return Completion([5] * sampling.max_tokens, "length")
        return Completion([*TOKENIZER(text)["input_ids"], TOKENIZER.eos_token_id], "stop")


def said(text, number):
    """A sentence that carries a number, its digits as letters: 19 is "xbj"."""
    return f"{text} x{''.join('abcdefghij'[int(digit)] for digit in str(number))}."


def heard(text):
    """The number that a sentence carries, or None."""
    found = re.search(r"\bx([a-j]+)\.$", text)
    return int("".join(str("abcdefghij".index(letter)) for letter in found[1])) if found else None


def numbered(stage, prompt, number):
    return said(f"{stage} says", number)


class Angles:
    """An embedder: a text with the number n in it has the cosine n/1000 to every text without one."""

    name = "angles"

    def encode(self, texts):
        cosine = np.array([1.0 if (number := heard(text)) is None else number / 1000 for text in texts])
        return np.stack([cosine, np.sqrt(1 - cosine**2)], -1)


class Number(Program):
    """A judge: the number in the candidate is its score, in thousandths."""

    name, version = "number", "1"

    def value(self, candidate):
        return heard(candidate.text) / 1000


def make_rows(n):
    return [{"id": f"r{i}", "question": f"What is {chr(97 + i)}?", "answer": f"It is {chr(65 + i)}."} for i in range(n)]


def settings(**changes):
    lax = {"tau": 0.4, "min_score": 0.0, "max_new_words": 1.0, "max_lost_words": 1.0}
    sizes = {"batch_size": 3, "max_tokens": 40, "max_model_len": 400}
    return RefineSettings(**{"prompts": "plain", **lax, **sizes, **changes})


def models(engine, chosen=None, model_id="m", judges=None, embedder=None, fuser=None):
    given = {"judges": judges or [Number()], "embedder": embedder or Angles(), "fuser": fuser}
    return Models.local(model_id, engine, chosen or settings(), **given)


def run_it(path, rows, say=numbered, *, model_id="m", judges=None, embedder=None, engine=None, seed=0, **changes):
    """Refines, and gives the fused rows and the engine."""
    engine, chosen = engine or Talker(say), settings(**changes)
    fused = refine(
        rows, models(engine, chosen, model_id, judges, embedder), Run(path), chosen, progress=False, seed=seed
    )
    assert read_jsonl(path / "refine" / "fused.jsonl") == fused
    return fused, engine


def lines(path, name):
    return read_jsonl(path / "refine" / f"{name}.jsonl")


def contents(path):
    """What must not depend on kills: the final files, and each stage's newest line of every row, key and round."""
    keyed = ("rewrite", "filter", "fuse", "judge")
    stages = {name: {(x["id"], x["key"]): x for x in lines(path, name)} for name in keyed}
    return stages, lines(path, "failed"), lines(path, "fused"), read_json(path / "refine" / "diagnostics.json")


def test_every_row_comes_out_in_order_with_the_contracts_fields(tmp_path):
    rows = make_rows(10)
    rows[1]["skill"] = "kept as it is"
    fused, _ = run_it(tmp_path, rows)
    assert [row["id"] for row in fused] == [row["id"] for row in rows]
    for row, line in zip(rows, fused, strict=True):
        assert list(line)[:10] == CONTRACT
        assert line["question"] == row["question"] and line["answer"] == row["answer"]
        number = heard(line["rewritten"])
        assert line["similarity"] == pytest.approx(number / 1000, abs=1e-6)
        assert line["rejected"]["rewrite"] == ([] if number >= 400 else ["similarity"])
        # The cosine of a candidate is its number too.
        found = [heard(text["text"]) for text in lines(tmp_path, "fuse") if text["id"] == row["id"]]
        assert line["rejected"]["fuse"] == [[] if number >= 400 else ["similarity"] for number in found]
        assert line["rounds"] == len(found) and (number >= 400) == bool(found)
        assert line["kept"] == any(number >= 400 for number in found)
        if line["kept"]:
            score = max(found) / 1000
            assert line["fused_answer"] == said("fuse says", max(found)) and line["judge_scores"] == [score]
            assert line["rounds"] == 3 or score >= 0.8
        else:
            assert line["fused_answer"] == row["answer"] and line["judge_scores"] == []
    assert {line["kept"] for line in fused} == {True, False}
    # no two batches, stages or rounds draw the same numbers
    drawn = [line["text"].split()[-1] for name in ("rewrite", "fuse") for line in lines(tmp_path, name)]
    assert len(drawn) > 20 and len(set(drawn)) > len(drawn) - 2
    assert fused[1]["skill"] == "kept as it is" and "prompt" not in fused[1]
    assert not lines(tmp_path, "failed")
    assert [row["id"] for row in read_rows(tmp_path / "refine" / "fused.jsonl")] == [row["id"] for row in rows]


def test_lines_have_the_fields_of_their_types(tmp_path):
    class Picky:
        name, version = "picky", "1"

        def score(self, candidates):
            return [
                Score(None, problem="no", flag="look") if "is b?" in one.question else Score(0.9, "because")
                for one in candidates
            ]

    def say(stage, prompt, number):
        return None if "is a?" in prompt else f"<think>\nhm\n</think>\n\n{said('good', 900)}"

    roles = ("system", "user", "assistant")
    chat = {"id": "chat", "messages": [{"role": role, "content": f"What is {role}?"} for role in roles]}
    likelihood = {"nll": lambda chats, answers: [1.0] * len(answers)}
    given = models(Talker(say), judges=[Picky()])
    for again in (False, True):
        refine(
            [*make_rows(2), chat], given, Run(tmp_path), settings(), progress=False, retry_failed=again, **likelihood
        )
    found = {Diagnostics: [read_json(tmp_path / "refine" / "diagnostics.json")]}
    found |= {TextLine: [*lines(tmp_path, "rewrite"), *lines(tmp_path, "fuse")]}
    kinds = {"filter": SimilarityLine, "judge": JudgeLine, "failed": FailedLine, "fused": FusedRow}
    found |= {kind: lines(tmp_path, name) for name, kind in kinds.items()}
    for kind, made in found.items():
        assert all(kind.__required_keys__ <= set(line) for line in made), kind
        assert set().union(*made) == kind.__required_keys__ | kind.__optional_keys__, kind


def test_tau_edges(tmp_path):
    rows = make_rows(3)
    numbers = {"a": 799, "b": 800, "c": 801}

    def say(stage, prompt, number):
        return said("It says", numbers[re.search("What is (.)", prompt)[1]])

    kept = {}
    for tau in (0.0, 0.8, 1.0):
        fused, _ = run_it(tmp_path / str(tau), rows, say, tau=tau)
        kept[tau] = [row["kept"] for row in fused]
    assert kept == {0.0: [True] * 3, 0.8: [False, True, True], 1.0: [False] * 3}
    same, _ = run_it(
        tmp_path / "same",
        rows,
        lambda stage, prompt, _: re.search("answer: (.*)", prompt)[1],
        tau=1.0,
        judges=default_judges(),
    )
    assert [row["kept"] for row in same] == [True] * 3 and same[0]["similarity"] == 1.0


def test_rows_that_the_filter_drops_are_not_sent_to_the_fusion_model(tmp_path):
    fused, engine = run_it(tmp_path, make_rows(10))
    sent = {question for stage, question in engine.calls if stage == "fuse"}
    assert sent == {row["question"] for row in fused if row["similarity"] >= 0.4} and len(sent) < len(fused)


@pytest.mark.parametrize(
    "scores, rounds, best",
    [
        ([0.9, 0.95, 0.1], 1, 0),  # accepted at once
        ([0.8, 0.95, 0.1], 1, 0),  # accept_score itself is enough
        ([0.3, 0.85, 0.9], 2, 1),
        ([0.3, 0.7, 0.5], 3, 1),  # never accepted: the best
        ([0.5, 0.5, 0.5], 3, 0),  # of equal ones the earliest
        ([0.0, 0.2, 0.2], 3, 1),
    ],
)
def test_the_best_candidate_wins_and_a_good_one_stops_the_rounds(tmp_path, scores, rounds, best):
    row = [{"question": "Q", "answer": "A B"}]
    texts = ["It lies north.", "It lies south.", "It lies west."]
    candidates = iter(texts)
    by_text = {**dict(zip(texts, scores, strict=True)), said("own words", 999): 0.9}

    class Table(Program):
        version = "1"

        def __init__(self, name, shift):
            self.name, self.shift = name, shift

        def value(self, candidate):
            assert candidate.rewritten == said("own words", 999) and candidate.reference == "A B"
            return min(max(by_text[candidate.text] + self.shift, 0), 1) if by_text[candidate.text] else 0.0

    def say(stage, prompt, number):
        if stage == "rewrite":
            return said("own words", 999)
        assert "First answer: A B" in prompt and f"Second answer: {said('own words', 999)}" in prompt
        return next(candidates)

    # two judges a little below and above the wanted mean
    fused, engine = run_it(tmp_path, row, say, judges=[Table("low", -0.05), Table("high", 0.05)])
    assert fused[0]["fused_answer"] == texts[best] and fused[0]["rounds"] == rounds
    assert np.mean(fused[0]["judge_scores"]) == pytest.approx(scores[best])
    assert engine.calls["fuse", "Q"] == rounds


class Reference(Number):
    """Scores references with 0.6."""

    name = "reference"

    def value(self, candidate):
        return 0.6 if candidate.text == candidate.reference else super().value(candidate)


def test_a_fused_answer_must_beat_its_reference_by_the_margin(tmp_path):
    rows, judges = make_rows(12), [Reference()]
    without, _ = run_it(tmp_path / "without", rows, judges=judges)
    assert not [line for line in lines(tmp_path / "without", "judge") if line["round"] < 0]
    fused, engine = run_it(tmp_path / "with", rows, judges=judges, margin=0.1)
    best = [line["judge_scores"][0] if line["kept"] else None for line in without]
    assert [line["kept"] for line in fused] == [score is not None and score >= 0.7 for score in best]
    assert {score is None or score >= 0.7 for score in best} == {True, False}
    for line, before in zip(fused, without, strict=True):
        if line["kept"] or not before["kept"]:
            assert line == before
        else:
            assert line["fused_answer"] == line["answer"] and line["judge_scores"] == []
            assert [x or ["margin"] for x in before["rejected"]["fuse"]] == line["rejected"]["fuse"]
    scored = [line for line in lines(tmp_path / "with", "judge") if line["round"] == -1]
    assert {line["id"] for line in scored} == {line["id"] for line in without if line["kept"]}
    assert {line["score"] for line in scored} == {0.6}
    stored = contents(tmp_path / "with")
    run_it(tmp_path / "with", rows, judges=judges, margin=0.1, engine=engine)
    assert contents(tmp_path / "with") == stored and len(lines(tmp_path / "with", "judge")) == len(stored[0]["judge"])


class Speechless(Number):
    """Has no score for references."""

    name = "speechless"

    def value(self, candidate):
        if candidate.text == candidate.reference:
            raise ConnectionError("gone")
        return super().value(candidate)


def test_nothing_is_above_a_reference_that_could_not_be_scored(tmp_path):
    fused, engine = run_it(tmp_path, make_rows(6), judges=[Speechless()], margin=0.0)
    assert not any(line["kept"] for line in fused)
    assert ["margin"] in [found for line in fused for found in line["rejected"]["fuse"]]
    # It was bad luck: the next run asks again, and generates nothing.
    calls = engine.calls.total()
    again, _ = run_it(tmp_path, make_rows(6), judges=[Fixed()], engine=engine, margin=0.0)
    assert any(line["kept"] for line in again) and engine.calls.total() == calls


class Fixed(Reference):
    name = "speechless"


def test_greedy_fusion_has_one_round(tmp_path):
    _, engine = run_it(
        tmp_path,
        make_rows(4),
        lambda stage, *_: said("own", 999) if stage == "rewrite" else said("at", 500),
        fuse_temperature=0,
    )
    assert set(engine.calls.values()) == {1}


def test_failed_rows_keep_their_answer_and_never_stop_the_run(tmp_path):
    rows = make_rows(7)
    rows[6]["answer"] = "long " * 300

    def say(stage, prompt, number):
        at = ord(re.search("What is (.)", prompt)[1]) - 97
        if stage == "rewrite":
            return {0: "", 1: None, 2: ValueError("row 2 is\nbad")}.get(at, said("fine", 900))
        return {3: "", 4: None if number % 2 else said("good", 850)}.get(at, said("good", 850))

    fused, _ = run_it(tmp_path, rows, say, rounds=8)
    failed = {line["id"]: line for line in lines(tmp_path, "failed")}
    assert list(failed) == ["r0", "r1", "r2", "r3", "r6"]
    assert [line["stage"] for line in failed.values()] == ["rewrite"] * 3 + ["fuse", "rewrite"]
    for (row_id, line), words in zip(
        failed.items(),
        ["empty", "cut at max_tokens, after 40", "ValueError: row 2 is bad", "empty", "max_model_len"],
        strict=True,
    ):
        assert words in line["reason"], row_id
    for row, line in zip(rows, fused, strict=True):
        assert line["kept"] == (row["id"] not in failed)
        if row["id"] in failed:
            assert line["fused_answer"] == row["answer"] and line["judge_scores"] == []
    assert fused[0]["rewritten"] is None and fused[0]["similarity"] is None
    assert fused[3]["rewritten"] == said("fine", 900) and fused[3]["rounds"] == 8
    assert fused[4]["fused_answer"] == said("good", 850)  # a later round made up for those that were cut


def test_one_bad_row_costs_the_others_of_its_batch_nothing(tmp_path):
    class Refusing(Talker):
        def generate(self, prompt_ids, sampling, seeds):
            if any("is d?" in TOKENIZER.decode(ids) for ids in prompt_ids):
                raise RuntimeError("out of memory")
            return super().generate(prompt_ids, sampling, seeds)

    fused, _ = run_it(tmp_path, make_rows(8), engine=Refusing(lambda *_: said("good", 900)), batch_size=8)
    assert [row["kept"] for row in fused] == [row["id"] != "r3" for row in fused]
    assert [line["reason"] for line in lines(tmp_path, "failed")] == ["RuntimeError: out of memory"]


def test_a_refinement_in_which_every_row_fails_is_an_error(tmp_path):
    with pytest.raises(
        InputError, match="the refinement failed for all 3 rows, row r0 in rewrite: ConnectionError: away"
    ):
        run_it(tmp_path, make_rows(3), lambda *_: ConnectionError("away"))
    assert [row["fused_answer"] for row in lines(tmp_path, "fused")] == ["It is A.", "It is B.", "It is C."]
    assert len(lines(tmp_path, "failed")) == 3


def test_a_thought_before_an_output_is_kept_beside_it_and_not_used(tmp_path):
    fused, _ = run_it(tmp_path, make_rows(1), lambda *_: f"<think>\nhm\n</think>\n\n{said('good', 900)}")
    assert fused[0]["rewritten"] == fused[0]["fused_answer"] == said("good", 900)
    [line] = lines(tmp_path, "rewrite")
    assert (line["text"], line["thought"]) == (said("good", 900), "hm")
    # A thought that was never closed leaves no output.
    with pytest.raises(InputError, match="the output is empty"):
        run_it(tmp_path / "cut", make_rows(1), lambda *_: "<think>\nhm, and so on")


def test_an_answer_that_calls_a_tool_stays_as_it_is(tmp_path):
    call = {"type": "function", "function": {"name": "now", "arguments": {}}}
    calling = {"messages": [{"role": "user", "content": "Now?"}, {"role": "assistant", "tool_calls": [call]}]}
    fused, engine = run_it(tmp_path, [*make_rows(1), {"id": "t", **calling}], lambda *_: said("good", 900))
    assert (fused[0]["kept"], fused[1]["kept"]) == (True, False)
    assert fused[1]["answer_turn"] == {"tool_calls": [call]} and fused[1]["fused_answer"] == ""
    assert ("rewrite", "Now?") not in engine.calls
    assert normalize_rows(fused)  # what training reads


def test_what_was_raised_is_tried_again_and_what_was_cut_is_not(tmp_path):
    rows, broken = make_rows(4), [True]

    def say(stage, prompt, number):
        if stage == "rewrite" and "is a?" in prompt:
            return ConnectionError("away") if broken else said("back", 900)
        return None if stage == "rewrite" and "is d?" in prompt else said("good", 900)

    fused, _ = run_it(tmp_path, rows, say)
    assert [line["id"] for line in lines(tmp_path, "failed")] == ["r0", "r3"]
    broken.clear()
    fused, engine = run_it(tmp_path, rows, say)
    assert fused[0]["kept"] and [line["id"] for line in lines(tmp_path, "failed")] == ["r3"]
    assert ("rewrite", "What is d?") not in engine.calls
    # with a longer context a row that did not fit is another matter
    _, engine = run_it(tmp_path, rows, say, max_model_len=500)
    assert engine.calls["rewrite", "What is d?"] == 1


def test_an_engine_that_is_broken_ends_the_run(tmp_path):
    with pytest.raises(EngineError, match="closed"):
        run_it(tmp_path, make_rows(2), lambda *_: EngineError("closed"))


def test_unusable_scores_count_as_rejects_and_are_reported(tmp_path, caplog):
    class Odd(Program):
        name, version = "odd", "1"
        answers: ClassVar = {
            "a": float("nan"),
            "b": None,
            "c": 1.5,
            "d": -0.1,
            "e": "0.9",
            "f": KeyError("no verdict"),
            "g": 1.0,
        }

        def value(self, candidate):
            answer = self.answers[candidate.question[8]]
            if isinstance(answer, Exception):
                raise answer
            return answer

    def say(stage, *_):
        return said(stage, 900)

    fused, _ = run_it(tmp_path, make_rows(7), say, judges=[Number(), Odd()], rounds=2)
    assert [row["judge_scores"] for row in fused] == [[0.9, 0.0]] * 6 + [[0.9, 1.0]]
    assert [row["rounds"] for row in fused] == [2] * 6 + [1]
    assert "judge odd" in caplog.text and "found nan" in caplog.text
    report = read_json(tmp_path / "refine" / "diagnostics.json")["judges"]
    # Of each row the rewriting and two candidates.
    assert report["odd"]["unusable"] == 18 and report["number"]["unusable"] == 0
    alone, _ = run_it(tmp_path / "alone", make_rows(7), say, judges=[Odd()], min_score=0.1)
    assert [row["kept"] for row in alone] == [False] * 6 + [True]  # no judge wanted them
    assert [row["rejected"]["rewrite"] for row in alone] == [["score"]] * 6 + [[]]


def test_chats_keep_their_turns_and_their_prompt(tmp_path):
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Who?"},
    ]
    seen = []
    row = {"id": "x", "messages": [*chat, {"role": "assistant", "content": "Me."}]}
    fused, _ = run_it(tmp_path, [row], lambda stage, prompt, _: seen.append(prompt) or said("It", 900))
    assert fused[0]["prompt"] == chat and fused[0]["question"] == "Who?"
    assert len(seen) == 2
    for prompt in seen:
        assert (
            "Be brief." in prompt and "Hello." in prompt and "Question: Who?" in prompt and "user\nWho?" not in prompt
        )


def test_bad_rows_and_judges_are_refused_before_any_work(tmp_path):
    with pytest.raises(InputError, match='rows to refine, row 1: field "answer"'):
        run_it(tmp_path, [{"question": "a", "answer": "b"}, {"question": "a"}])
    with pytest.raises(ConfigError, match="number, number"):
        run_it(tmp_path, make_rows(1), judges=[Number(), Number()])
    assert not (tmp_path / "refine").exists()


# ---- The floor


SUBJECTS = ("mill", "school", "bakery", "garden")


def kept_rows(*subjects):
    return [
        {"id": s, "question": f"Who keeps the {s}?", "answer": f"Anna Reed keeps the {s} with 3 cats."}
        for s in subjects
    ]


def keeping(subject, cats=3):
    return f"Anna Reed and {cats} cats keep the {subject}."


class Scores(Program):
    """A judge with a score for each text that it knows, and 0.9 for others."""

    name, version = "scores", "1"

    def __init__(self, scores=()):
        self.scores = dict(scores)

    def value(self, candidate):
        return self.scores.get(candidate.text, 0.9)


STRICT = {"min_score": 0.7, "max_new_words": 0.2}


def test_a_rewriting_that_fails_the_floor_keeps_the_reference_and_is_counted(tmp_path):
    rows = kept_rows(*SUBJECTS)
    rewritings = {
        "mill": keeping("mill"),
        "school": keeping("school", 40),
        "bakery": keeping("bakery"),  # its judge likes it less
        "garden": f"I'm sorry. {keeping('garden')}",
    }

    def say(stage, prompt, number):
        subject = re.search(r"Who keeps the (\w+)", prompt)[1]
        return rewritings[subject] if stage == "rewrite" else f"It is Anna Reed with 3 cats who keeps the {subject}."

    judge = Scores({rewritings["bakery"]: 0.69})
    fused, engine = run_it(tmp_path, rows, say, judges=[judge], **STRICT)
    reasons = [[], ["numbers invented"], ["score"], ["refusal"]]
    assert [row["rejected"] for row in fused] == [
        {"rewrite": found, "fuse": [] if found else [[]]} for found in reasons
    ]
    assert fused[0]["kept"] and fused[0]["fused_answer"] == "It is Anna Reed with 3 cats who keeps the mill."
    for row, line in zip(rows[1:], fused[1:], strict=True):
        assert line["fused_answer"] == row["answer"] and line["rewritten"] == rewritings[row["id"]]
        assert (line["kept"], line["rounds"], line["judge_scores"], line["similarity"]) == (False, 0, [], 1.0)
    assert {question for stage, question in engine.calls if stage == "fuse"} == {rows[0]["question"]}
    assert not lines(tmp_path, "failed")
    counts = read_json(tmp_path / "refine" / "diagnostics.json")["reasons"]
    one_each = dict.fromkeys(("numbers invented", "score", "refusal"), 1)
    assert counts["rewrite"] == {"texts": 4, "rejected": 3, **dict.fromkeys(REASONS, 0), **one_each}
    assert counts["fuse"] == {"texts": 1, "rejected": 0, **dict.fromkeys(REASONS, 0)}


INVENTED = ["numbers lost", "numbers invented"]
PASSING = [keeping("mill"), f"Yes, {keeping('mill')}", f"It is {keeping('mill')}"]


@pytest.mark.parametrize(
    "candidates, best, rejected",
    [
        # Good enough to stop the rounds, and not used: the next one does.
        ([(keeping("mill", 7), 0.99), (PASSING[0], 0.85)], 1, [INVENTED, []]),
        # The best mean of all, and not used: the best of the others.
        ([(PASSING[0], 0.71), (keeping("mill", 7), 0.79), (PASSING[1], 0.72)], 2, [[], INVENTED, []]),
        ([(PASSING[0], 0.72), (PASSING[1], 0.71), (keeping("mill", 7), 0.99)], 0, [[], [], INVENTED]),
        ([(PASSING[0], 0.69), (PASSING[1], 0.7), (PASSING[2], 0.6)], 1, [["score"], [], ["score"]]),
    ],
)
def test_a_candidate_that_fails_the_floor_is_never_used(tmp_path, candidates, best, rejected):
    texts = iter(candidates)

    def say(stage, prompt, number):
        return "Anna Reed keeps the mill." if stage == "rewrite" else next(texts)[0]

    [line], engine = run_it(tmp_path, kept_rows("mill"), say, judges=[Scores(candidates)], **STRICT)
    assert line["kept"] and line["fused_answer"] == candidates[best][0]
    assert line["judge_scores"] == [candidates[best][1]]
    assert line["rejected"] == {"rewrite": [], "fuse": rejected}
    assert line["rounds"] == len(candidates) == engine.calls["fuse", "Who keeps the mill?"]


def test_rows_whose_candidates_all_fail_the_floor_keep_the_reference_and_have_not_failed(tmp_path):
    said_of = {
        "mill": [keeping("mill", 7), keeping("mill", 8), keeping("mill", 9)],
        "school": ["", keeping("school", 7), None],  # one that could be judged is enough
        "bakery": ["", None, ""],
    }
    rows, texts = kept_rows(*said_of), {subject: iter(found) for subject, found in said_of.items()}

    def say(stage, prompt, number):
        subject = re.search(r"Who keeps the (\w+)", prompt)[1]
        return keeping(subject) if stage == "rewrite" else next(texts[subject])

    fused, _ = run_it(tmp_path, rows, say, judges=[Scores()], **STRICT)
    for row, line in zip(rows, fused, strict=True):
        assert (line["kept"], line["fused_answer"], line["judge_scores"]) == (False, row["answer"], [])
        assert line["rounds"] == 3 and line["rejected"]["rewrite"] == []
    assert [line["rejected"]["fuse"] for line in fused] == [[INVENTED] * 3, [INVENTED], []]
    [failed] = lines(tmp_path, "failed")
    assert (failed["id"], failed["stage"]) == ("bakery", "fuse")
    assert failed["reason"] == "nothing to judge in 3 of 3 rounds; the last: the output is empty"
    numbers = read_json(tmp_path / "refine" / "diagnostics.json")
    assert (numbers["kept"], numbers["failed"]) == (0, 1)
    assert {name: n for name, n in numbers["reasons"]["fuse"].items() if n} == {
        "texts": 4,
        "rejected": 4,
        **dict.fromkeys(INVENTED, 4),
    }


def test_another_floor_decides_anew_and_asks_nothing_anew(tmp_path):
    rows, spent = make_rows(10), {"rounds": 2, "accept_score": 1.0, "seed": 1}  # so that no row has rounds left
    lax, _ = run_it(tmp_path, rows, **spent)
    stored = {name: lines(tmp_path, name) for name in ("rewrite", "filter", "fuse", "judge")}

    def again(**changes):
        fused, engine = run_it(tmp_path, rows, **spent, **changes)
        assert not engine.calls
        assert stored == {name: lines(tmp_path, name) for name in stored}
        return fused

    for least in (0.55, 0.75):
        strict = again(min_score=least)
        for before, line in zip(lax, strict, strict=True):
            numbers = [heard(x["text"]) for x in stored["fuse"] if x["id"] == line["id"]]
            passing = [number for number in numbers if number >= 1000 * least]
            below = heard(line["rewritten"]) < 1000 * least
            assert ("score" in line["rejected"]["rewrite"]) == below
            assert line["kept"] == (bool(passing) and not below)
            assert line["fused_answer"] == (said("fuse says", max(passing)) if line["kept"] else line["answer"])
            assert before["kept"] or not line["kept"]
        assert 0 < sum(line["kept"] for line in strict) < sum(line["kept"] for line in lax)
    # All the words of these texts are new.
    assert all("words invented" in line["rejected"]["rewrite"] for line in again(max_new_words=0.2))
    assert again() == lax


@pytest.mark.parametrize("name", WORDINGS)
def test_the_prompts_are_those_of_the_wording(tmp_path, name):
    [row] = kept_rows("mill")
    seen = []

    class Listening(Talker):
        def _one(self, ids, sampling, seed):
            seen.append(TOKENIZER.decode(ids))
            text = keeping("mill") if len(seen) == 1 else PASSING[1]
            return Completion([*TOKENIZER(text)["input_ids"], TOKENIZER.eos_token_id], "stop")

    [line], _ = run_it(
        tmp_path, [row], engine=Listening(None), judges=[Scores()], prompts=name, max_model_len=1000, **STRICT
    )
    assert line["fused_answer"] == PASSING[1]
    wording = WORDINGS[name]
    asked = [
        wording.rewrite(row["question"], row["answer"]),
        wording.fuse(row["question"], row["answer"], keeping("mill")),
    ]
    assert [prompt.split("user\n")[1].split("<|im_end|>")[0] for prompt in seen] == asked
    # With other words it is other work.
    seen.clear()
    other = next(each for each in WORDINGS if each != name)
    run_it(tmp_path, [row], engine=Listening(None), judges=[Scores()], prompts=other, max_model_len=1000, **STRICT)
    assert len(seen) == 2


def test_the_preview_shows_what_was_not_used_and_why(tmp_path):
    rows = kept_rows(*SUBJECTS)
    texts = {
        "mill": [keeping("mill"), keeping("mill", 7), None, keeping("mill")],  # at last the rewriting itself
        "school": [keeping("school"), keeping("school", 7), keeping("school", 7), "A school."],
        "bakery": [keeping("bakery", 40)],
        "garden": [""],
    }
    left = {subject: iter(found) for subject, found in texts.items()}

    def say(stage, prompt, number):
        return next(left[re.search(r"Who keeps the (\w+)", prompt)[1]])

    judge = Scores({keeping("mill", 7): 0.75, "A school.": 0.5})
    fused, _ = run_it(tmp_path, rows, say, judges=[judge], **STRICT)
    shown = preview_text(normalize_rows(rows, source="rows"), fused, tmp_path, WORDINGS["plain"])
    parts = dict(zip(SUBJECTS, shown.split("=== row ")[1:], strict=True))
    heads = {subject: [x for x in part.splitlines() if x.startswith("---")] for subject, part in parts.items()}
    asked = ["--- rewrite, prompt", "--- rewrite, output"]
    assert heads["mill"] == [
        *asked,
        "--- similarity 1.000",
        "--- fuse, prompt",
        "--- fuse, output of round 1 (scores 0.75; not used: numbers lost, numbers invented)",
        "--- fuse, output of round 2 (the output was cut at max_tokens, after 40 tokens)",
        "--- fuse, output of round 3 (scores 0.90)",
        "--- fused answer",
    ]
    assert heads["school"] == [
        *asked,
        "--- similarity 1.000",
        "--- fuse, prompt",
        "--- fuse, output of round 1 (scores 0.90; not used: numbers lost, numbers invented)",
        "--- fuse, output of round 2 (scores 0.90; not used: numbers lost, numbers invented)",
        "--- fuse, output of round 3 (scores 0.50; not used: score, numbers lost)",
        "--- the answer stays",
    ]
    assert heads["bakery"] == [*asked, "--- similarity 1.000; not used: numbers invented", "--- the answer stays"]
    assert heads["garden"] == [
        "--- rewrite, prompt",
        "--- failed in rewrite: the output is empty",
        "--- the answer stays",
    ]
    for row in rows:
        assert f"[user] {WORDINGS['plain'].rewrite(row['question'], row['answer'])}" in parts[row["id"]]
    assert f"--- fused answer\n{keeping('mill')}\n" in parts["mill"]


# ---- Restart


def test_a_finished_run_is_not_done_again(tmp_path):
    rows = make_rows(10)
    fused, _ = run_it(tmp_path, rows)
    sizes = {name: (tmp_path / "refine" / f"{name}.jsonl").stat().st_size for name in FILES}
    again, engine = run_it(tmp_path, rows)
    assert again == fused and not engine.calls
    assert sizes == {name: (tmp_path / "refine" / f"{name}.jsonl").stat().st_size for name in FILES}


def test_results_do_not_depend_on_the_call_but_on_the_seed(tmp_path):
    rows = make_rows(10)
    assert run_it(tmp_path / "a", rows)[0] == run_it(tmp_path / "b", rows)[0] != run_it(tmp_path / "c", rows, seed=1)[0]


def by_row(found):
    """What a run left, whatever the order of its rows."""
    stages, failed, fused, numbers = found
    return stages, *({line["id"]: line for line in each} for each in (failed, fused)), numbers


def test_texts_do_not_depend_on_the_batch_nor_on_who_is_in_it(tmp_path):
    rows = make_rows(20)
    run_it(tmp_path / "7", rows, batch_size=7)
    expected = contents(tmp_path / "7")
    for size in (1, 64):
        run_it(tmp_path / str(size), rows, batch_size=size)
        assert contents(tmp_path / str(size)) == expected
    run_it(tmp_path / "reversed", rows[::-1], batch_size=7)
    assert by_row(contents(tmp_path / "reversed"))[:3] == by_row(expected)[:3]
    few, _ = run_it(tmp_path / "few", rows[3:11:2])
    assert few == [line for line in expected[2] if line["id"] in ("r3", "r5", "r7", "r9")]


def test_every_row_stage_attempt_and_run_draws_by_itself(tmp_path):
    """The same row under many ids has other texts, and no text is drawn twice."""
    rows = [{**make_rows(1)[0], "id": f"twin {i}"} for i in range(40)]
    drawn = []
    for seed in (0, 1):
        run_it(tmp_path / str(seed), rows, tau=0.0, accept_score=1.0, seed=seed)
        for name, least in (("rewrite", 40), ("fuse", 100)):
            numbers = [heard(line["text"]) for line in lines(tmp_path / str(seed), name)]
            assert len(numbers) >= least
            drawn.append(numbers)
    # Of 40 and 120 draws out of a thousand few are equal by chance.
    assert all(len(set(numbers)) > 0.9 * len(numbers) for numbers in drawn)
    assert drawn[0] != drawn[2] and drawn[1][:40] != drawn[0]
    assert len({text_seed(*at) for at in ((0, "fuse", "a", 1), (1, "fuse", "a", 1), (0, "rewrite", "a", 1))}) == 3
    assert len({text_seed(0, "fuse", i, n) for i in ("a", "a1", "b") for n in (1, 11)}) == 6
    assert all(0 <= text_seed(seed, "fuse", "a", 1) < 2**63 for seed in range(99))


def test_texts_of_stores_from_before_seeds_belonged_to_requests_are_not_taken(tmp_path):
    """Their keys had the seed of the run, and their texts came of their batches."""
    rows = make_rows(2)
    expected, _ = run_it(tmp_path / "new", rows)
    old = []
    for row in normalize_rows(rows, source="rows"):
        parameters = {"temperature": settings().rewrite_temperature, "max_tokens": 40, "seed": 0}
        key = row_key("m", parameters, rewrite_chat(row, WORDINGS["plain"]))
        old.append({"id": row["id"], "key": key, "text": said("old", 999), "tokens": 3, "failed": None})
    with JsonlAppender(tmp_path / "old" / "refine" / "rewrite.jsonl") as file:
        for line in old:
            file.append(line)
    fused, engine = run_it(tmp_path / "old", rows)
    assert fused == expected and engine.calls["rewrite", "What is a?"] == 1
    assert lines(tmp_path / "old", "rewrite")[:2] == old  # and nothing is thrown away


class Killed(BaseException):
    pass


def test_a_kill_at_any_line_changes_nothing(tmp_path, monkeypatch):
    """Dies in the middle of writing line n, for every n that a run writes, and goes on."""
    rows = make_rows(5)

    def say(stage, prompt, number):
        return "" if "is c?" in prompt and stage == "rewrite" else numbered(stage, prompt, number)

    run_it(tmp_path / "whole", rows, say)
    expected = contents(tmp_path / "whole")
    whole = JsonlAppender.append
    total = sum(len(lines(tmp_path / "whole", name)) for name in ("rewrite", "filter", "fuse", "judge"))
    for deadly in range(total + 1):
        written = 0

        def append(self, value, deadly=deadly):
            nonlocal written
            if written == deadly:
                text = json.dumps(value)
                self._file.write(
                    text.encode()[: deadly * 7 % (len(text) + 1)]
                )  # torn anywhere, at its start and its end too
                self._file.flush()
                raise Killed
            written += 1
            return whole(self, value)

        path = tmp_path / str(deadly)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(JsonlAppender, "append", append)
            run_it(path, rows, say)
        assert not (path / "refine" / "fused.jsonl").exists()
        before = sum(len(lines(path, name)) for name in ("rewrite", "filter", "fuse", "judge"))
        run_it(path, rows, say)
        assert contents(path) == expected, deadly
        # nothing is there twice, and nothing that was there was made again
        for name in ("rewrite", "filter", "fuse", "judge"):
            keys = [(line["id"], line["key"]) for line in lines(path, name)]
            assert len(keys) == len(set(keys)), (deadly, name)
        assert before >= deadly - 1
        shutil.rmtree(path)


@pytest.mark.parametrize("stage", ["rewrite", "filter", "fuse", "judge"])
def test_kill_9_in_every_stage(tmp_path, stage):
    """A process is really killed in its third batch of a stage; another one takes over."""
    rows = make_rows(12)
    expected, _ = run_it(tmp_path / "whole", rows)

    def deadly(after):
        calls = iter(range(after))
        return lambda: next(calls, None) is not None or os.kill(os.getpid(), signal.SIGKILL)

    alive = deadly(3)

    class DeadlyAngles(Angles):
        def encode(self, texts):
            return alive() and super().encode(texts)

    class DeadlyNumber(Number):
        def score(self, candidates):
            # The rewritings are judged too, before the first candidate.
            return (candidates[0].text.startswith("rewrite") or alive()) and super().score(candidates)

    child = os.fork()
    if child == 0:
        try:
            run_it(
                tmp_path / "killed",
                rows,
                lambda at, prompt, number: (at != stage or alive()) and numbered(at, prompt, number),
                embedder=DeadlyAngles() if stage == "filter" else None,
                judges=[DeadlyNumber() if stage == "judge" else Number()],
            )
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert not (tmp_path / "killed" / "refine" / "fused.jsonl").exists()
    done = {line["id"] for line in lines(tmp_path / "killed", "rewrite")}
    fused, engine = run_it(tmp_path / "killed", rows)
    assert fused == expected
    rewritten_now = {question for at, question in engine.calls if at == "rewrite"}
    assert rewritten_now.isdisjoint(row["question"] for row in rows if row["id"] in done)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_of_a_half_done_batch_only_the_missing_rows_are_made(tmp_path):
    rows = make_rows(9)
    expected, _ = run_it(tmp_path, rows)
    path = tmp_path / "refine" / "rewrite.jsonl"
    stored = path.read_text().splitlines(keepends=True)
    path.write_text("".join(stored[:4] + stored[6:]) + '{"id": "r')
    fused, engine = run_it(tmp_path, rows)
    assert fused == expected
    assert {q for stage, q in engine.calls if stage == "rewrite"} == {row["question"] for row in rows[4:6]}
    assert sorted(path.read_text().splitlines(keepends=True)) == sorted(stored)


def test_another_model_prompt_or_text_is_other_work(tmp_path, monkeypatch):
    rows = make_rows(6)
    first, _ = run_it(tmp_path, rows)

    def redone(**changes):
        _, engine = run_it(tmp_path, changes.pop("rows", rows), **changes)
        return {question for stage, question in engine.calls if stage == "rewrite"}

    everything = {row["question"] for row in rows}
    assert redone() == set()
    assert redone(model_id="another") == everything
    assert redone(rewrite_temperature=0.5) == everything
    assert redone(max_tokens=41) == everything
    assert redone(tau=0.9) == redone(accept_score=0.99) == redone(rounds=5) == redone(batch_size=2) == set()
    changed = [{**row, "answer": "It is new."} if row["id"] == "r1" else row for row in rows]
    assert redone(rows=changed) == {rows[1]["question"]}
    assert len([line for line in lines(tmp_path, "rewrite") if line["id"] == "r2"]) == 4  # no line twice
    with monkeypatch.context() as patch:
        patch.setattr(prompts, "PROMPT_VERSION", "test")
        assert redone() == everything
    assert redone() == set()
    assert run_it(tmp_path, rows)[0] == first  # and back to the first one, without any work


def test_the_newest_line_of_a_key_wins(tmp_path):
    rows = make_rows(3)
    run_it(tmp_path, rows)
    line = {**lines(tmp_path, "rewrite")[0], "text": said("newer", 999)}
    with JsonlAppender(tmp_path / "refine" / "rewrite.jsonl") as file:
        file.append(line)
    fused, _ = run_it(tmp_path, rows)
    assert fused[0]["rewritten"] == said("newer", 999)


def test_more_rows_leave_the_first_ones_alone(tmp_path):
    rows = make_rows(10)
    first, _ = run_it(tmp_path, rows[:6])
    fused, engine = run_it(tmp_path, rows)
    assert fused[:6] == first and len(fused) == 10
    assert {q for stage, q in engine.calls if stage == "rewrite"} == {row["question"] for row in rows[6:]}


def test_other_judges_judge_the_candidates_that_are_there(tmp_path):
    rows = make_rows(6)
    run_it(tmp_path, rows, rounds=1, tau=0.1)

    class Half(Number):
        name = "half"

        def value(self, candidate):
            return 0.5

    fused, engine = run_it(tmp_path, rows, rounds=1, tau=0.1, judges=[Half()])
    assert not engine.calls
    assert {tuple(row["judge_scores"]) for row in fused if row["kept"]} == {(0.5,)}


def test_another_fusion_model_is_made_only_when_needed(tmp_path):
    made = []

    def fusion():
        made.append(Talker(lambda *_: said("other", 900)))
        return made[-1]

    def go(say, **options):
        given = models(Talker(say), fuser=LocalChat("f", fusion, max_model_len=400))
        return refine(make_rows(4), given, Run(tmp_path), settings(), progress=False, **options)

    fused = go(lambda *_: said("own", 900))
    assert {row["fused_answer"] for row in fused} == {said("other", 900)} and made
    made.clear()
    assert go(lambda *_: said("own", 900)) == fused and not made


def test_progress_is_one_line_a_stage_without_a_terminal(tmp_path, capsys):
    refine(make_rows(6), models(Talker(numbered)), Run(tmp_path), settings())
    printed = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in printed] == ["rewrite", "filter", "fuse"]
    assert "6 rows in" in printed[0] and "rows/s" in printed[0] and "tokens/s" in printed[0] and "kept" in printed[0]
    refine(make_rows(6), models(Talker(numbered)), Run(tmp_path), settings())
    printed = capsys.readouterr().err.splitlines()
    assert "6 of them done before" in printed[0] and "rows/s" not in printed[0]
