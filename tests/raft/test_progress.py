"""Progress: a sign of life at least every half minute in a log file, and a bar that stays one on a narrow terminal."""

import functools
import io
import os
import re
import sys
import time

import pytest
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from raft import progress
from raft.progress import Progress, amount, call, clock, lasting_stderr, say
from raft.refine.progress import StageProgress, Stages
from raft.runs import read_jsonl
from raft.train.progress import TrainingProgress
from tests.golden.training import trainer


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def screens(self):
        """What each redraw showed."""
        return [part for part in re.split(r"[\r\n]|\x1b\[A", self.getvalue()) if part.strip()]


@pytest.fixture
def open_terminal(monkeypatch):
    """To be called in the test itself: pytest puts its own stderr in place when that begins."""

    def install():
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setenv("LINES", "24")
        monkeypatch.setattr(progress, "REDRAW_S", 0.02)
        return screen

    return install


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(progress, "EVERY_S", 0.05)


def until(condition, patience_s=20):
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def test_a_call_that_takes_long_does_not_keep_a_log_file_waiting(often, capsys):
    said = []

    def lines():
        said.extend(capsys.readouterr().err.splitlines())
        return said

    with Progress("refine: fuse", 10, per_call=True) as phase:
        phase.add(4, fresh=2, figures=["kept 75.0 %"])
        with call(6) as answers:
            answers.finished(2)
            until(lambda: len(lines()) >= 2)
    # 2 and 2 were made in this time: of the 4 that are left each takes a quarter of it
    pattern = r"refine: fuse: 4 of 10 rows, 2 of 6 in this call, [\d.,]+ (rows/s|s/row), kept 75.0 %, 0:\d\d left"
    assert re.fullmatch(pattern, said[0]), said[0]
    assert re.match(r"refine: fuse: 4 rows in [\d.]+ s, 2 of them done before, ", lines()[-1])


def test_time_left_follows_from_what_was_made_now(often, capsys):
    class Begun(Progress):
        seconds = 30.0  # ago

    def says(line):
        until(lambda: line in capsys.readouterr().err.splitlines())

    with Begun("p", 100, per_call=True, final=False) as phase:
        phase.add(40, fresh=10)  # 30 of them by an earlier run
        says("p: 40 of 100 rows, 3.0 s/row, 3:00 left")
        with call(20) as answers:
            answers.finished(5)
            says("p: 40 of 100 rows, 5 of 20 in this call, 2.0 s/row, 1:50 left")
    with Begun("train", 100, "step", final=False) as steps, call(20) as rollouts:
        steps.add(10)
        rollouts.finished(5)  # which are no steps
        says("train: 10 of 100 steps, 5 of 20 in this call, 3.0 s/step, 4:30 left")


def test_the_innermost_phase_speaks(often, capsys):
    said = []
    with Progress("outer", 2), Progress("inner", 2, final=False):
        until(lambda: said.extend(capsys.readouterr().err.splitlines()) or len(said) >= 3)
    assert {line.split(":")[0] for line in said} == {"inner"}


def test_short_phases_in_between_put_no_line_off(often, capsys):
    said = []
    with Progress("train", 9, "step"):
        end = time.monotonic() + 20
        while len(said) < 5 and time.monotonic() < end:
            with Progress("answer", 2, final=False):
                time.sleep(0.03)  # ends before it would say anything itself
            time.sleep(0.03)
            said.extend(capsys.readouterr().err.splitlines())
    assert len(said) >= 5


def test_work_of_unknown_length_says_how_long_it_has_taken(often, capsys):
    said = []
    with Progress("starting vLLM", final=False):
        until(lambda: said.extend(capsys.readouterr().err.splitlines()) or said)
    assert re.fullmatch(r"starting vLLM: 0:0\d so far", said[0])


@pytest.mark.parametrize("options", [{"show": False}, {"total": 0}])
def test_what_is_not_to_be_shown_is_silent(options, often, capsys):
    with Progress("quiet", **({"total": 5} | options)) as phase:
        phase.add(1)
        time.sleep(0.1)
    assert capsys.readouterr() == ("", "")


def test_only_the_first_rank_speaks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with Progress("train", 5, "step") as phase:
        phase.add(5)
    assert capsys.readouterr().err == ""


def test_an_error_leaves_no_phase_and_no_summary(capsys):
    with pytest.raises(KeyError), Progress("broken", 5):
        raise KeyError("x")
    assert not progress._open and capsys.readouterr().err == ""


def test_no_call_is_needed_and_none_needs_a_phase():
    with call(3) as answers:
        answers.finished(3)
    assert answers.done == 3


def test_lines_reach_a_stderr_that_was_led_elsewhere_in_the_meantime(often, capfd):
    with lasting_stderr() as stderr, Progress("starting vLLM", final=False, stream=stderr):
        kept = os.dup(2)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        said = []
        until(lambda: said.append(capfd.readouterr().err) or "so far" in "".join(said))
        os.dup2(kept, 2)
        os.close(kept)


def test_a_bar_is_a_bar_on_80_columns(open_terminal):
    terminal = open_terminal()
    with StageProgress("rewrite", 300) as stage:
        stage.add_rows(120, fresh=120, tokens=123_456, kept=100)
    shown = terminal.screens()
    assert "120/300" in shown[-1] and "kept 83.3 %" in shown[-1] and "row" in shown[-1] and "<" in shown[-1]
    for line in shown:
        assert len(line) <= 80, line
        bar = re.search(r"\|(.*?)\|", line)
        assert bar and len(bar[1]) >= 10, line


def test_a_stage_says_how_many_rows_failed_and_how_many_requests_are_on_their_way(often, capsys):
    class Server:
        in_flight = 0

    server, said = Server(), []

    def shown(words):
        return lambda: said.append(capsys.readouterr().err) or words in "".join(said)

    with StageProgress("rewrite", 300, model=server) as stage:
        stage.add_rows(120, fresh=120, tokens=600, kept=120)
        until(shown("kept 100.0 %, "))
        assert "failed" not in "".join(said) and "in flight" not in "".join(said)
        server.in_flight = 17  # without any further row
        until(shown("tokens/s, 17 in flight"))
        stage.add_rows(20, fresh=20, tokens=60, kept=138, failed=2)
        until(shown("kept 98.6 %, 2 failed, "))
        server.in_flight = 0
    summary = capsys.readouterr().err.splitlines()[-1]
    assert "140 rows in" in summary and "2 failed" in summary and "in flight" not in summary


def test_a_stage_goes_on_with_the_next_slice(often, open_terminal, capsys):
    def go(wait=lambda: None, between_s=0.0):
        stages = Stages(show=True)
        for rows, later in ((40, 60), (60, 0)):
            stages.later = later
            with stages.slice("rewrite", rows) as stage:
                stage.add_rows(rows // 2, fresh=rows // 2, kept=rows // 4, made=["a", "b"])
                stage.add_rows(rows // 2, fresh=rows // 2, kept=rows // 2, made=["b", "c"])
                wait()
            time.sleep(between_s)
        return stages.numbers[0]

    said = []

    def shown():
        said.extend(capsys.readouterr().err.splitlines())
        return re.search(r"refine: rewrite: (40|100) of 100 rows, .*kept 50.0 %", "".join(said[-1:]))

    begin = time.monotonic()
    found = go(wait=lambda: until(shown), between_s=0.5)
    assert found.seconds <= time.monotonic() - begin - 1.0  # the time in between is not the stage's
    assert (found.rows, found.new, found.passed) == (100, 6, 50)
    said.extend(capsys.readouterr().err.splitlines())
    assert [re.match(r"refine: rewrite: 100 rows in .*kept 50.0 %", line) is not None for line in said][-2:] == [0, 1]
    terminal = open_terminal()
    go()
    last = terminal.screens()[-1]
    assert "40/100" in terminal.getvalue() and "100/100" in last and "kept 50.0 %" in last
    assert sum("100/100" in line for line in terminal.getvalue().split("\n")) == 1


def test_short_slices_put_no_line_off(often, capsys):
    stages, said = Stages(show=True), []
    end = time.monotonic() + 20
    stages.later = 1_000_000
    while len(said) < 5 and time.monotonic() < end:
        for stage in ("rewrite", "fuse"):
            with stages.slice(stage, 1) as progress:
                time.sleep(0.03)  # each ends before it would say anything
                progress.add_rows(1)
        said.extend(capsys.readouterr().err.splitlines())
    assert len(said) >= 5


def test_a_bar_moves_while_a_call_lasts(open_terminal):
    terminal = open_terminal()
    with Progress("answer", 600, "item", per_call=True), call(600) as answers:
        answers.finished(300)
        until(lambda: "300/600" in terminal.screens()[-1])
        assert re.search(r"50%.*<.*item/s|50%.*<.*s/item", terminal.screens()[-1])


def test_what_is_read_from_disk_is_no_part_of_the_speed(open_terminal):
    terminal = open_terminal()
    with Progress("fuse", 1000, "row") as phase:
        phase.add(640, fresh=0)
        time.sleep(0.3)
        phase.add(60)
    shown = re.search(r"700/1000 .*<00:(\d\d), *([\d.]+)row/s", terminal.screens()[-1])
    assert shown, terminal.screens()[-1]
    # 60 rows in 0.3 s or more, and 300 are left: with the others it would be 700 in that time
    assert float(shown[2]) <= 201 and int(shown[1]) >= 1


@pytest.mark.parametrize("stream", ["no terminal", "disabled"])
def test_odd_streams_and_settings_are_survived(stream, open_terminal, monkeypatch):
    if stream == "disabled":
        terminal = open_terminal()
        monkeypatch.setattr(tqdm, "__init__", functools.partialmethod(tqdm.__init__, disable=True))  # as TQDM_DISABLE=1
    else:
        terminal = type("Log", (), {"write": lambda self, text: None, "flush": lambda self: None})()
        monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("train", 5, "step") as phase, lasting_stderr() as stderr:
        phase.add(5)
        assert stderr is terminal
    assert not progress._open


def test_a_log_that_has_gone_stops_no_work(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    with Progress("train", 5, "step") as phase:
        phase.add(5)
    phase.stop()  # once more does nothing
    assert not progress._open


def test_a_phase_that_is_not_shown_leaves_the_others_alone(often, capsys):
    said = []
    with Progress("train", 2, "step"), Progress("answer", 2, show=False):
        until(lambda: said.extend(capsys.readouterr().err.splitlines()) or said)
    assert said[0].startswith("train: 0 of 2 steps")


def test_lines_and_bars_leave_each_other_whole(open_terminal):
    terminal = open_terminal()
    with Progress("train", 10, "step") as phase:
        phase.add(3)
        say("validation: 0.5", sys.stderr)
        phase.add(1)
    assert "validation: 0.5" in terminal.screens()


def test_the_training_bar_keeps_its_bar(open_terminal, tmp_path):
    terminal = open_terminal()
    made = trainer(tmp_path, max_steps=2, disable_tqdm=False)
    kinds = {type(c) for c in made.callback_handler.callbacks}
    assert TrainingProgress in kinds and not {ProgressCallback, PrinterCallback} & kinds
    made.train()
    bars = [line for line in terminal.screens() if line.startswith("train:")]
    assert "2/2" in bars[-1] and "epoch" in bars[-1]
    for line in bars:
        assert len(line) <= 80 and len(re.search(r"\|(.*?)\|", line)[1]) >= 10, line
    assert not progress._open


def test_a_log_file_of_a_training_has_lines_and_no_bars(tmp_path, often, capsys):
    made = trainer(tmp_path, max_steps=6, disable_tqdm=False)
    capsys.readouterr()
    made.train()
    said = capsys.readouterr().err
    assert "\r" not in said and "%|" not in said
    lines = [line for line in said.splitlines() if line.startswith("train: ")]
    assert re.match(r"train: 6 steps in [\d.]+ s, ", lines[-1])
    for name in ("epoch ", "loss ", "sft ", "kl ", "lambda ", "tok/s ", "rollout "):
        assert name in lines[-1], lines[-1]
    last = read_jsonl(tmp_path / "metrics.jsonl")[-1]
    assert f", loss {last['loss']:.4g}, " in lines[-1]  # of this step, not of the one before


def test_a_method_without_rollouts_shows_no_share_of_them(tmp_path, capsys):
    trainer(tmp_path, max_steps=2, method="sft", disable_tqdm=False).train()
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("train: 2 steps in ") and "sft " in line and "rollout" not in line and "kl" not in line


def test_what_a_user_logs_is_printed_beside_it(tmp_path, capsys):
    made = trainer(tmp_path, max_steps=2, disable_tqdm=False)

    class Own(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            made.log({"my_metric": 0.25})

    made.add_callback(Own())
    made.train()
    said = capsys.readouterr()
    assert said.out.count("my_metric") == 2 and "train_runtime" not in said.out + said.err


def test_an_evaluation_that_fails_ends_its_phase(tmp_path, often, capsys):
    made = trainer(tmp_path, max_steps=1, disable_tqdm=False)
    made.train()
    rows = [{"question": f"What is {i}?", "answer": "This."} for i in range(40)]
    step, counted = made.prediction_step, []

    def fails(*args, **kwargs):
        counted.append(1)
        if len(counted) == 2:
            raise RuntimeError("out of memory")
        return step(*args, **kwargs)

    made.prediction_step = fails
    with pytest.raises(RuntimeError):
        made.evaluate(rows)
    assert not progress._open and made._progress._prediction is None
    made.evaluate(rows)
    assert not progress._open


def test_an_error_in_a_training_ends_its_phase(tmp_path, capsys):
    made = trainer(tmp_path, max_steps=2, disable_tqdm=False)

    def fails(*args, **kwargs):
        raise RuntimeError("out of memory")

    made.training_step = fails
    with pytest.raises(RuntimeError):
        made.train()
    assert not progress._open


def test_words():
    assert (amount(1, "row"), amount(1200, "row")) == ("1 row", "1,200 rows")
    assert (clock(7.4), clock(247), clock(3723)) == ("0:07", "4:07", "1:02:03")
