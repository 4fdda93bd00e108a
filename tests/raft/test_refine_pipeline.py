"""The logic of the stages and of their restart; engine, embedder and judges are small deterministic programs."""

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
from raft.config import RefineSettings
from raft.engines import Completion, request_seed
from raft.errors import ConfigError, EngineError, InputError
from raft.refine import refine
from raft.refine.judges import default_judges
from raft.rows import read_rows
from raft.runs import JsonlAppender, Run, read_json, read_jsonl
from tests.tiny import tokenizer as make_tokenizer

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the tests fork
TOKENIZER = make_tokenizer()
CONTRACT = ["id", "question", "answer", "rewritten", "similarity", "kept", "fused_answer", "judge_scores", "rounds"]
FILES = ("rewrite", "filter", "fuse", "judge", "failed", "fused")


class Talker:
    """An engine whose text is a function of the prompt and of the number that its request would draw."""

    name = "talker"
    tokenizer = TOKENIZER

    def __init__(self, say):
        self.say = say  # (stage, prompt, number from 0 to 999) -> text, None for one that is cut, or an exception
        self.calls = Counter()

    def generate(self, prompt_ids, sampling):
        return [self._one(ids, sampling, i) for i, ids in enumerate(prompt_ids)]

    def _one(self, ids, sampling, i):
        prompt = TOKENIZER.decode(ids)
        stage = "rewrite" if "Rewrite the reference" in prompt else "fuse"
        self.calls[stage, re.search(r"Question: (.*)\n", prompt)[1]] += 1
        text = self.say(stage, prompt, request_seed(sampling.seed, i) % 1000 if sampling.temperature else 0)
        if isinstance(text, BaseException):
            raise text
        if text is None:
            return Completion([5] * sampling.max_tokens, "length")
        return Completion([*TOKENIZER(text)["input_ids"], TOKENIZER.eos_token_id], "stop")


def numbered(stage, prompt, number):
    return f"{stage} says {number}."


class Angles:
    """An embedder: a text with the number n in it has the cosine n/1000 to every text without one."""

    name = "angles"

    def encode(self, texts):
        found = [re.search(r"\d+(?=\.$)", text) for text in texts]
        cosine = np.array([int(number[0]) / 1000 if number else 1.0 for number in found])
        return np.stack([cosine, np.sqrt(1 - cosine**2)], -1)


class Number:
    """A judge: the number in the candidate is its score, in thousandths."""

    name = "number"

    def score(self, row, candidate):
        return int(re.search(r"\d+", candidate)[0]) / 1000


def make_rows(n):
    return [{"id": f"r{i}", "question": f"What is {chr(97 + i)}?", "answer": f"It is {chr(65 + i)}."} for i in range(n)]


def settings(**changes):
    return RefineSettings(**{"tau": 0.4, "batch_size": 3, "max_tokens": 40, "max_model_len": 400, **changes})


def run_it(path, rows, say=numbered, *, model_id="m", judges=None, embedder=None, engine=None, seed=0, **changes):
    """Refines, and gives the fused rows and the engine."""
    engine = engine or Talker(say)
    fused = refine(
        rows, engine, Run(path), settings(**changes),
        model_id=model_id, embedder=embedder or Angles(), judges=judges or [Number()], progress=False, seed=seed,
    )  # fmt: skip
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
        assert list(line)[:9] == CONTRACT
        assert line["question"] == row["question"] and line["answer"] == row["answer"]
        number = int(line["rewritten"].split()[-1][:-1])
        assert line["similarity"] == pytest.approx(number / 1000, abs=1e-6)
        assert line["kept"] == (number >= 400)
        if line["kept"]:
            score = int(line["fused_answer"].split()[-1][:-1]) / 1000
            assert line["fused_answer"].startswith("fuse says") and line["judge_scores"] == [score]
            assert line["rounds"] == 3 or score >= 0.8
        else:
            assert line["fused_answer"] == row["answer"] and (line["judge_scores"], line["rounds"]) == ([], 0)
    assert {line["kept"] for line in fused} == {True, False}
    # no two batches, stages or rounds draw the same numbers
    drawn = [line["text"].split()[-1] for name in ("rewrite", "fuse") for line in lines(tmp_path, name)]
    assert len(drawn) > 20 and len(set(drawn)) > len(drawn) - 2
    assert fused[1]["skill"] == "kept as it is" and "prompt" not in fused[1]
    assert not lines(tmp_path, "failed")
    assert [row["id"] for row in read_rows(tmp_path / "refine" / "fused.jsonl")] == [row["id"] for row in rows]


def test_tau_edges(tmp_path):
    rows = make_rows(3)
    said = {"a": 799, "b": 800, "c": 801}

    def say(stage, prompt, number):
        return f"It says {said[re.search('What is (.)', prompt)[1]]}."

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
    assert sent == {row["question"] for row in fused if row["kept"]}


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
    candidates = iter(f"candidate {i}" for i in range(3))
    by_text = {f"candidate {i}": score for i, score in enumerate(scores)}

    class Table:
        def __init__(self, name, shift):
            self.name, self.shift = name, shift

        def score(self, row, candidate):
            assert row["rewritten"] == "own words 999." and row["answer"] == "A B"
            return min(max(by_text[candidate] + self.shift, 0), 1) if by_text[candidate] else 0.0

    def say(stage, prompt, number):
        if stage == "rewrite":
            return "own words 999."
        assert "First answer: A B" in prompt and "Second answer: own words 999." in prompt
        return next(candidates)

    # two judges a little below and above the wanted mean
    fused, engine = run_it(tmp_path, row, say, judges=[Table("low", -0.05), Table("high", 0.05)])
    assert fused[0]["fused_answer"] == f"candidate {best}" and fused[0]["rounds"] == rounds
    assert np.mean(fused[0]["judge_scores"]) == pytest.approx(scores[best])
    assert engine.calls["fuse", "Q"] == rounds


def test_greedy_fusion_has_one_round(tmp_path):
    _, engine = run_it(
        tmp_path,
        make_rows(4),
        lambda stage, *_: "rewritten 999." if stage == "rewrite" else "at 100.",
        fuse_temperature=0,
    )
    assert set(engine.calls.values()) == {1}


def test_failed_rows_keep_their_answer_and_never_stop_the_run(tmp_path):
    rows = make_rows(7)
    rows[6]["answer"] = "long " * 300

    def say(stage, prompt, number):
        at = ord(re.search("What is (.)", prompt)[1]) - 97
        if stage == "rewrite":
            return {0: "", 1: None, 2: ValueError("row 2 is\nbad")}.get(at, "fine 900.")
        return {3: "", 4: None if number % 2 else "good 850."}.get(at, "good 850.")

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
    assert fused[3]["rewritten"] == "fine 900." and fused[3]["rounds"] == 8
    assert fused[4]["fused_answer"] == "good 850."  # a later round made up for those that were cut


def test_one_bad_row_costs_the_others_of_its_batch_nothing(tmp_path):
    class Refusing(Talker):
        def generate(self, prompt_ids, sampling):
            if any("is d?" in TOKENIZER.decode(ids) for ids in prompt_ids):
                raise RuntimeError("out of memory")
            return super().generate(prompt_ids, sampling)

    fused, _ = run_it(tmp_path, make_rows(8), engine=Refusing(lambda *_: "good 900."), batch_size=8)
    assert [row["kept"] for row in fused] == [row["id"] != "r3" for row in fused]
    assert [line["reason"] for line in lines(tmp_path, "failed")] == ["RuntimeError: out of memory"]


def test_what_was_raised_is_tried_again_and_what_was_cut_is_not(tmp_path):
    rows, broken = make_rows(4), [True]

    def say(stage, prompt, number):
        if stage == "rewrite" and "is a?" in prompt:
            return ConnectionError("away") if broken else "back 900."
        return None if stage == "rewrite" and "is d?" in prompt else "good 900."

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
    class Odd:
        name = "odd"
        answers: ClassVar = {
            "a": float("nan"),
            "b": None,
            "c": 1.5,
            "d": -0.1,
            "e": "0.9",
            "f": KeyError("no verdict"),
            "g": 1.0,
        }

        def score(self, row, candidate):
            answer = self.answers[row["question"][8]]
            if isinstance(answer, Exception):
                raise answer
            return answer

    fused, _ = run_it(tmp_path, make_rows(7), lambda *_: "good 900.", judges=[Number(), Odd()], rounds=2)
    assert [row["judge_scores"] for row in fused] == [[0.9, 0.0]] * 6 + [[0.9, 1.0]]
    assert [row["rounds"] for row in fused] == [2] * 6 + [1]
    assert "judge odd" in caplog.text and "found nan" in caplog.text
    report = read_json(tmp_path / "refine" / "diagnostics.json")["judges"]
    assert report["odd"]["unusable"] == 12 and report["number"]["unusable"] == 0
    alone, _ = run_it(tmp_path / "alone", make_rows(7), lambda *_: "good 900.", judges=[Odd()])
    assert [row["kept"] for row in alone] == [False] * 6 + [True]  # no judge wanted them
    assert "every judge rejected" in lines(tmp_path / "alone", "failed")[0]["reason"]


def test_chats_keep_their_turns_and_their_prompt(tmp_path):
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Who?"},
    ]
    seen = []
    row = {"id": "x", "messages": [*chat, {"role": "assistant", "content": "Me."}]}
    fused, _ = run_it(tmp_path, [row], lambda stage, prompt, _: seen.append(prompt) or "It 900.")
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
                self._file.write(text[: deadly * 7 % (len(text) + 1)])  # torn anywhere, at its start and its end too
                self._file.flush()
                raise Killed
            written += 1
            whole(self, value)

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
        def score(self, row, candidate):
            return alive() and super().score(row, candidate)

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


def test_a_half_done_batch_is_made_again_whole_and_only_the_missing_lines_are_added(tmp_path):
    rows = make_rows(9)
    expected, _ = run_it(tmp_path, rows)
    path = tmp_path / "refine" / "rewrite.jsonl"
    stored = path.read_text().splitlines(keepends=True)
    path.write_text("".join(stored[:4] + stored[6:]) + '{"id": "r')
    fused, engine = run_it(tmp_path, rows)
    assert fused == expected
    assert {q for stage, q in engine.calls if stage == "rewrite"} == {row["question"] for row in rows[3:6]}
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
    assert redone(rows=changed) == {row["question"] for row in rows[:3]}  # its batch
    assert len([line for line in lines(tmp_path, "rewrite") if line["id"] == "r2"]) == 4  # but no line twice
    with monkeypatch.context() as patch:
        patch.setattr(prompts, "PROMPT_VERSION", "test")
        assert redone() == everything
    assert redone() == set()
    assert run_it(tmp_path, rows)[0] == first  # and back to the first one, without any work


def test_the_newest_line_of_a_key_wins(tmp_path):
    rows = make_rows(3)
    run_it(tmp_path, rows)
    line = {**lines(tmp_path, "rewrite")[0], "text": "newer 999."}
    with JsonlAppender(tmp_path / "refine" / "rewrite.jsonl") as file:
        file.append(line)
    fused, _ = run_it(tmp_path, rows)
    assert fused[0]["rewritten"] == "newer 999."


def test_more_rows_leave_the_first_ones_alone(tmp_path):
    rows = make_rows(10)
    first, _ = run_it(tmp_path, rows[:6])
    fused, engine = run_it(tmp_path, rows)
    assert fused[:6] == first and len(fused) == 10
    assert {q for stage, q in engine.calls if stage == "rewrite"} == {row["question"] for row in rows[6:]}


def test_other_judges_judge_the_candidates_that_are_there(tmp_path):
    rows = make_rows(6)
    run_it(tmp_path, rows, rounds=1)

    class Half(Number):
        name = "half"

        def score(self, row, candidate):
            return 0.5

    fused, engine = run_it(tmp_path, rows, rounds=1, judges=[Half()])
    assert not engine.calls
    assert {tuple(row["judge_scores"]) for row in fused if row["kept"]} == {(0.5,)}


def test_another_fusion_model_is_made_only_when_needed(tmp_path):
    made = []

    def fusion():
        made.append(Talker(lambda *_: "other 900."))
        return made[-1]

    def go(say, **options):
        return refine(
            make_rows(4), Talker(say), Run(tmp_path), settings(),
            model_id="m", embedder=Angles(), judges=[Number()], progress=False,
            fusion_engine=fusion, fusion_id="f", **options,
        )  # fmt: skip

    fused = go(lambda *_: "own 900.")
    assert {row["fused_answer"] for row in fused} == {"other 900."} and made
    made.clear()
    assert go(lambda *_: "own 900.") == fused and not made


def test_progress_is_one_line_a_stage_without_a_terminal(tmp_path, capsys):
    refine(
        make_rows(6), Talker(numbered), Run(tmp_path), settings(), model_id="m", embedder=Angles(), judges=[Number()]
    )
    printed = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in printed] == ["rewrite", "filter", "fuse"]
    assert "6 rows in" in printed[0] and "rows/s" in printed[0] and "tokens/s" in printed[0] and "kept" in printed[0]
    refine(
        make_rows(6), Talker(numbered), Run(tmp_path), settings(), model_id="m", embedder=Angles(), judges=[Number()]
    )
    printed = capsys.readouterr().err.splitlines()
    assert "6 of them done before" in printed[0] and "rows/s" not in printed[0]
