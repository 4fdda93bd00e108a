"""What a refinement says of itself: the estimate against what was then asked, the table against the stores."""

import json
import re
from collections import Counter
from dataclasses import replace

import pytest

from raft.chat import LocalChat, Reply
from raft.cli import plan_refinement
from raft.judges.model import ModelJudge
from raft.refine import estimate as estimates
from raft.refine import refine
from raft.refine.context import Models
from raft.refine.estimate import Estimate, estimate, estimate_lines
from raft.refine.pipeline import refine_rows
from raft.refine.progress import StageNumbers
from raft.refine.refinement import refine_run
from raft.refine.summary import summary_text
from raft.rendering import chat_ids, chat_text
from raft.rows import normalize_rows
from raft.runs import Run
from raft.settings import Config, RefineSettings
from tests.raft.chat_server import Answer, chat_server
from tests.raft.test_refine_pipeline import TOKENIZER, Angles, Number, Talker, lines, make_rows, said, settings
from tests.tiny import build


def good(stage, prompt, number):
    """A text that passes, and that no judge finds good enough to end the rounds."""
    return said(f"{stage} says", 500 + number % 400)


class Counting:
    """A chat model that keeps what it was asked and what came back."""

    def __init__(self, chat):
        self.chat, self.name, self.asked, self.tokens = chat, chat.name, [], 0

    def replies(self, requests):
        self.asked += list(requests)
        for place, reply in self.chat.replies(requests):
            self.tokens += reply.tokens
            yield place, reply

    def prompt_tokens(self):
        return sum(len(chat_ids(TOKENIZER, request.messages, **request.options)) for request in self.asked)


class Verdicts:
    name = "grader"

    def replies(self, requests):
        for place in range(len(requests)):
            yield place, Reply(json.dumps({"reason": "fine", "score": 0.9}), 9)


class Roles:
    """A rewriter, a fuser and a judge that is a model, all counted. say: of rewriter and fuser."""

    def __init__(self, say=good, *, fuser="f"):
        engine = Talker(say)
        self.rewriter, self.fuser = (
            Counting(LocalChat(name, lambda: engine, batch_size=3, max_model_len=400)) for name in ("m", fuser)
        )
        self.judge = Counting(Verdicts())
        judges = [Number(), ModelJudge(self.judge)]
        self.models = Models(self.rewriter, self.fuser, Angles(), judges)

    def counts(self):
        return [len(one.asked) for one in (self.rewriter, self.fuser, self.judge)]


def lasting(**changes):
    """Settings under which every row takes all rounds."""
    return settings(**{"accept_score": 1.0, **changes})


def guess(path, rows, chosen=None, roles=None, **options):
    chosen, roles = chosen or lasting(), roles or Roles()
    rows = normalize_rows(rows, source="rows")
    return estimate(rows, roles.models, chosen, TOKENIZER, Run(path).refine_dir, seed=0, **options)


def run_it(path, rows, chosen=None, roles=None, **options):
    roles = roles or Roles()
    refine(rows, roles.models, Run(path), chosen or lasting(), progress=False, **options)
    return roles


def requests(found):
    return [one.requests for one in found]


def stored(found):
    return [one.stored for one in found]


def keep_lines(path, name, count):
    file = path / "refine" / f"{name}.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:count]))


def test_of_a_fresh_run(tmp_path):
    rows = make_rows(10)
    found = guess(tmp_path / "run", rows)
    assert not (tmp_path / "run").exists()
    assert [one.role for one in found] == ["rewriter", "fuser", "judge"]
    assert requests(found) == [10, 30, 40] and stored(found) == [0, 0, 0]
    roles = run_it(tmp_path / "run", rows)
    assert roles.counts() == requests(found)
    rewriter, fuser, judge = found
    assert rewriter.prompt_tokens == roles.rewriter.prompt_tokens()
    # The rewriting that is not known yet is another text than the answer that stands for it, by a few tokens.
    assert fuser.prompt_tokens == pytest.approx(roles.fuser.prompt_tokens(), rel=0.3)
    assert judge.prompt_tokens == pytest.approx(roles.judge.prompt_tokens(), rel=0.1)
    answers = sum(len(TOKENIZER(row["answer"], add_special_tokens=False)["input_ids"]) + 1 for row in rows)
    assert rewriter.new_tokens == answers and fuser.new_tokens == 3 * answers
    for one, asked in zip(found, (roles.rewriter, roles.fuser, roles.judge), strict=True):
        assert 0 < one.new_tokens <= one.most_tokens and asked.tokens <= one.most_tokens
    assert [one.most_tokens for one in found] == [10 * 40, 30 * 40, 40 * 1024]


@pytest.mark.parametrize(
    "kept, expected",
    [
        ({}, [6, 18, 24]),  # more rows than the run had
        ({"rewrite": 1, "filter": 0, "fuse": 0, "judge": 0}, [9, 30, 40]),
        ({"rewrite": 4, "filter": 0, "fuse": 0, "judge": 0}, [6, 30, 40]),
        # In the second round of the fusion; two judges have a line each of the rewritings and of the first round.
        ({"fuse": 6, "judge": 16}, [6, 24, 32]),
    ],
)
def test_of_a_half_stored_run(tmp_path, kept, expected):
    rows = make_rows(10)
    run_it(tmp_path, rows[:4])
    for name, count in kept.items():
        keep_lines(tmp_path, name, count)
    found = guess(tmp_path, rows)
    assert requests(found) == expected
    assert stored(found) == [10 - expected[0], 30 - expected[1], 40 - expected[2]]
    roles = run_it(tmp_path, rows)
    assert roles.counts() == expected
    assert found[0].prompt_tokens == roles.rewriter.prompt_tokens()


def test_of_a_finished_run(tmp_path):
    """Rows that were rejected, or accepted at once, are done as soon as a run says so that had the same settings."""

    def say(stage, prompt, number):
        return said(stage, 300 if "is a?" in prompt else 950)  # a: the filter rejects it

    rows, chosen = make_rows(5), settings(accept_score=0.8)
    first = guess(tmp_path, rows, chosen)
    roles = run_it(tmp_path, rows, chosen, Roles(say))
    assert roles.counts() == [5, 4, 8] and all(a <= b for a, b in zip(roles.counts(), requests(first), strict=True))
    before = guess(tmp_path, rows, chosen)
    assert requests(before)[:2] == [0, 15 - 4] and stored(before)[:2] == [5, 4]
    found = guess(tmp_path, rows, chosen, same_settings=True)
    assert requests(found) == [0, 0, 0] and stored(found) == [5, 4, 8]
    assert [(one.prompt_tokens, one.new_tokens, one.most_tokens) for one in found] == [(0, 0, 0)] * 3
    assert run_it(tmp_path, rows, chosen, Roles(say)).counts() == [0, 0, 0]
    # With a row more it is that row's.
    assert requests(guess(tmp_path, make_rows(6), chosen, same_settings=True)) == [1, 3, 4]


def test_what_may_be_asked_again_after_a_finished_run(tmp_path):
    class Broken(Angles):
        def encode(self, texts):
            if any("B" in text for text in texts):  # the answer of row r1
                raise ValueError("no")
            return super().encode(texts)

    class Nonsense(Verdicts):
        def replies(self, requests):
            yield from ((place, Reply("I cannot say.", 9)) for place in range(len(requests)))

    rows, roles = make_rows(3), Roles()
    roles.models = replace(roles.models, embedder=Broken())
    run_it(tmp_path / "filter", rows, roles=roles)
    assert [line["id"] for line in lines(tmp_path / "filter", "failed")] == ["r1"]
    assert requests(guess(tmp_path / "filter", rows, same_settings=True)) == [0, 3, 4]
    roles = Roles()
    roles.judge.chat = Nonsense()
    run_it(tmp_path / "judge", rows, roles=roles)
    assert stored(guess(tmp_path / "judge", rows)) == [3, 9, 12]
    assert requests(guess(tmp_path / "judge", rows, retry_failed=True)) == [0, 0, 12]


def test_what_was_made_with_other_settings_does_not_count(tmp_path):
    rows = make_rows(6)
    run_it(tmp_path, rows)
    other_fuser, longer = Roles(fuser="another"), lasting(max_tokens=41)
    assert requests(guess(tmp_path, rows)) == [0, 0, 0]
    assert requests(guess(tmp_path, rows, lasting(rounds=4))) == [0, 6, 6]
    assert requests(guess(tmp_path, rows, longer)) == [6, 18, 24]
    changed = [{**row, "answer": "It is new."} if row["id"] == "r1" else row for row in rows]
    assert requests(guess(tmp_path, changed)) == [1, 3, 4]
    assert requests(guess(tmp_path, rows, roles=other_fuser)) == [0, 18, 18]
    run_it(tmp_path, rows[:3], roles=Roles(fuser="another"))  # half of the rows, under both names
    assert requests(guess(tmp_path, rows, roles=other_fuser))[:2] == [0, 9]
    assert requests(guess(tmp_path, rows)) == [0, 0, 0]


def test_of_failures_nothing_comes_unless_they_are_asked_for_again(tmp_path):
    def say(stage, prompt, number):
        cut = "is a?" in prompt or (stage == "fuse" and "is b?" in prompt)
        return None if cut else good(stage, prompt, number)

    rows = make_rows(4)
    run_it(tmp_path, rows, roles=Roles(say))
    # a has no rewriting, b three rounds of fusion that were cut
    assert requests(guess(tmp_path, rows)) == [0, 0, 0]
    assert requests(guess(tmp_path, rows, retry_failed=True)) == [1, 6, 7]
    assert requests(guess(tmp_path, rows, lasting(max_model_len=399))) == [1, 6, 7]  # they may fit now
    assert run_it(tmp_path, rows, retry_failed=True).counts() == [1, 6, 7]


def test_answers_that_call_tools_cost_nothing(tmp_path):
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    turns = [{"role": "user", "content": "Look."}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    rows = [*make_rows(2), {"id": "tools", "messages": turns}]
    assert requests(guess(tmp_path, rows)) == [2, 6, 8]
    assert requests(guess(tmp_path, rows[2:])) == [0, 0, 0]


def test_greedy_fusion_has_one_round(tmp_path):
    assert requests(guess(tmp_path, make_rows(4), lasting(fuse_temperature=0.0))) == [4, 4, 8]


def test_of_many_rows_a_few_are_counted(tmp_path, monkeypatch):
    counted = Counter()
    monkeypatch.setattr(estimates, "SAMPLE", 5)

    def count(tokenizer, messages, **options):
        counted["prompts"] += 1
        return chat_text(tokenizer, messages, **options)

    rows = [{**row, "question": f"What is {i % 2}?"} for i, row in enumerate(make_rows(26))]
    whole = guess(tmp_path, rows)
    monkeypatch.setattr(estimates, "chat_text", count)
    again = guess(tmp_path, rows)
    assert counted["prompts"] == 5 + 5 + 5 and again == whole  # the same rows are drawn each time
    monkeypatch.setattr(estimates, "SAMPLE", 200)
    exact = guess(tmp_path, rows)
    assert [one.requests for one in exact] == [one.requests for one in again]
    assert again[0].prompt_tokens == pytest.approx(exact[0].prompt_tokens, rel=0.02)


def test_lines_of_the_estimate():
    found = [
        Estimate("rewriter", "local", 1200, 800, 50_000, 40_000, 614_400),
        Estimate("fuser", "large", 6000, 0, 400_000, 200_000, 3_072_000),
        Estimate("judge", "a", 8000, 0, 90, 80, 100),
        Estimate("judge", "b", 7999, 1, 90, 80, 100),
    ]
    assert estimate_lines(found[:2]) == [
        "refine: rewriter local: 1,200 requests (800 stored), about 50,000 prompt tokens, 40,000 new (at most 614,400)",
        "refine: fuser large: at most 6,000 requests, about 400,000 prompt tokens, 200,000 new (at most 3,072,000)",
    ]
    assert len(estimate_lines(found)) == 3
    assert "judge a: at most 8,000 requests, " in estimate_lines(found)[2]
    assert "; judge b: at most 7,999 requests (1 stored), " in estimate_lines(found)[2]


def from_stores(path, skip):
    """Stage -> what its store says: ids of new lines, and their tokens. skip: by stage, lines of earlier runs."""
    found = {name: lines(path, name)[skip.get(name, 0) :] for name in ("rewrite", "filter", "fuse")}
    ids = {name: {line["id"] for line in made} for name, made in found.items()}
    return ids, {name: sum(line.get("tokens", 0) for line in made) for name, made in found.items()}


def test_the_numbers_are_those_of_the_stores(tmp_path):
    """Also of a run that goes on, in whose batches some rows are new and some are not."""

    def say(stage, prompt, number):
        if "is a?" in prompt or (stage == "fuse" and "is c?" in prompt):
            return None
        return said(stage, 300 if "is b?" in prompt else 401 + number % 599)

    rows, chosen = make_rows(11), settings(accept_score=0.7)
    run_it(tmp_path, rows[::2], chosen, Roles(say))
    skip = {name: len(lines(tmp_path, name)) for name in ("rewrite", "filter", "fuse")}
    for given, before in [(rows, skip), (rows, {name: 10_000 for name in skip})]:
        refined = refine_rows(normalize_rows(given), Roles(say).models, Run(tmp_path), chosen, progress=False)
        fused = lines(tmp_path, "fused")
        by_stage = {one.stage: one for one in refined.stages}
        assert list(by_stage) == ["rewrite", "filter", "fuse"]
        ids, tokens = from_stores(tmp_path, before)
        failed = Counter(line["stage"] for line in lines(tmp_path, "failed"))
        passed_filter = sum(bool(line["rounds"]) for line in fused)
        expected = {
            "rewrite": (11, sum(line["rewritten"] is not None for line in fused)),
            "filter": (11, passed_filter),
            "fuse": (passed_filter, sum(line["kept"] for line in fused)),
        }
        for stage, (count, passed) in expected.items():
            one = by_stage[stage]
            assert (one.rows, one.passed, one.failed) == (count, passed, failed[stage]), stage
            assert one.tokens == (0 if stage == "filter" else tokens[stage]) and one.seconds > 0, stage
        compared = ids["filter"] & ids["rewrite"]  # the other new similarities are those of candidates
        assert by_stage["rewrite"].new == len(ids["rewrite"]) and by_stage["fuse"].new == len(ids["fuse"])
        assert by_stage["filter"].new == len(compared)
    assert by_stage["rewrite"].new == by_stage["filter"].new == by_stage["fuse"].new == 0
    assert failed == {"rewrite": 1, "fuse": 1}


def test_the_table():
    stages = [
        StageNumbers("rewrite", 1200, 1000, 1190, 10, 123_456, 60.0),
        StageNumbers("filter", 1200, 1000, 800, 0, 0, 1.25),
        StageNumbers("fuse", 800, 0, 700, 2, 0, 0.04),
    ]
    names = {"echo": 0, "length": 7, "loop": 3, "score": 9, "negation lost": 3}
    reasons = {"rewrite": {"texts": 1190, "rejected": 390, **names}, "fuse": {"texts": 30, "rejected": 9, "echo": 11}}
    assert summary_text(stages, reasons).splitlines() == [
        "stage     rows    new  passed  failed   tokens  tokens/s  seconds",
        "rewrite  1,200  1,000   1,190      10  123,456     2,058     60.0",
        "filter   1,200  1,000     800       0        -         -      1.2",
        "fuse       800      0     700       2        -         -      0.0",
        "not used: 399 of 1,220 texts; most often: echo 11, score 9, length 7",
    ]
    assert summary_text(stages, {"rewrite": {"texts": 2, "rejected": 0, "echo": 0}}, made_here=False).splitlines() == [
        "stage     rows  passed  failed",
        "rewrite  1,200   1,190      10",
        "filter   1,200     800       0",
        "fuse       800     700       2",
    ]


def test_what_a_run_prints(tmp_path, capsys):
    """Before the first request what it may cost, and at the end what came of it; a preview has the estimate of all."""
    model, data = build("llama", tmp_path / "model"), tmp_path / "rows.jsonl"
    answers = [f"House {i} is kept by Anna Reed. It is open on {i} May." for i in range(1, 5)]
    rows = [{"question": f"Who keeps house {i}?", "answer": answer} for i, answer in enumerate(answers, 1)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def reply(body, n):
        asked = body["messages"][-1]["content"]
        if "Your verdict" in asked:
            return Answer(json.dumps({"reason": "It is the same.", "score": 1.0}))
        house = int(asked.split("House ")[1].split()[0])
        return Answer(None, refusal="no") if house == 2 else Answer("Wrong." if house == 3 else answers[house - 1])

    def go(**options):
        refine_run(plan_refinement(config, Run(tmp_path / "run")), **options)
        shown = capsys.readouterr()
        said = [line for line in shown.err.splitlines() if line.startswith("refine: ")]
        return said, shown.out.splitlines()

    with chat_server(reply) as server:
        name = server.name()
        chosen = RefineSettings(rewriter=name, fuser=name, judges=["programs", name], rounds=2)
        config = Config(model=str(model), data=str(data), refine=chosen)
        shown, _ = go(preview=1)
        assert "rewriter scripted: 4 requests, " in shown[0] and "fuser scripted: at most 8 requests, " in shown[1]
        assert "judge scripted: at most 12 requests, " in shown[2]
        asked = len(server.bodies)
        said, (refined, *table) = go()
        asked = len(server.bodies) - asked
        said_again, (_, *table_again) = go()
    assert said[:3] == shown[:3] and said[3].startswith("refine: rewrite: 4 rows in")
    assert refined.startswith("refined 4 rows, kept 2 (50.0 %): ")
    assert [re.sub(r" +", " ", line).split(" ")[:6] for line in table[:4]] == [
        ["stage", "rows", "new", "passed", "failed", "tokens"],
        ["rewrite", "4", "4", "3", "1", "28"],  # the server says that each answer has 7 tokens, and a refusal too
        ["filter", "4", "3", "2", "0", "-"],
        ["fuse", "2", "2", "2", "0", "14"],
    ]
    assert re.fullmatch(r"not used: 1 of 5 texts; most often: [a-z ]+ 1, [a-z ]+ 1, [a-z ]+ 1", table[4])
    judged = [line for line in lines(tmp_path / "run", "judge") if line["judge"] == "scripted"]
    assert asked == 4 + 2 + len(judged) <= 4 + 8 + 12
    # The second time nothing is asked, and both say so.
    assert [line.split(": ")[2].split(", ")[0] for line in said_again[:3]] == [
        "0 requests (4 stored)", "at most 0 requests (2 stored)", "at most 0 requests (2 stored)",
    ]  # fmt: skip
    assert [line.split()[2] for line in table_again[1:4]] == ["0", "0", "0"]
