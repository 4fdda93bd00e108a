"""Stages side by side: results, errors, and that no process outlives them."""

import multiprocessing
import os
import signal
import sys
import threading
import time

import pytest

from raft.errors import RaftError
from raft.real.jobs import Jobs


def forever(folder):
    """A command that writes its process id to a file in `folder` and does not end."""
    code = f"import os, time; open({str(folder)!r} + f'/{{os.getpid()}}.pid', 'w').close(); time.sleep(600)"
    return [sys.executable, "-c", code]


def processes(folder):
    return [int(path.stem) for path in folder.glob("*.pid")]


def wait_for_process(folder):
    while not processes(folder):
        time.sleep(0.01)


def are_gone(folder):
    """Whether all processes are, of which there is at least one."""
    alive = []
    for process in processes(folder):
        try:
            os.kill(process, 0)
            alive.append(process)
        except ProcessLookupError:
            pass
    return processes(folder) and not alive


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def fail(name):
    sys.exit(3)


def test_one_at_a_time_is_done_when_it_is_asked_for_in_the_callers_thread():
    done = []
    with Jobs() as jobs:
        first = jobs.start(lambda: done.append(threading.current_thread()))
        assert done == []
        first()
    assert done == [threading.current_thread()]


def test_side_by_side_each_waits_for_the_other():
    meeting = threading.Barrier(2, timeout=60)
    with Jobs(2) as jobs:
        both = [jobs.start(meeting.wait), jobs.start(meeting.wait)]
        assert sorted(work() for work in both) == [0, 1]


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "6")


def test_the_cores_are_shared():
    Jobs(1)
    assert os.environ["OMP_NUM_THREADS"] == "6"
    Jobs(3)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    Jobs(1000)
    assert os.environ["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize("at_once", [1, 2])
def test_processes(at_once, tmp_path):
    with Jobs(at_once) as jobs:
        assert jobs.call([sys.executable, "-c", "raise SystemExit(5)"]) == 5
        jobs.alone(write, str(tmp_path / "file"), "text")
        assert (tmp_path / "file").read_text() == "text"
        with pytest.raises(RaftError, match="fail base ended with code 3"):
            jobs.alone(fail, "base")


def test_an_error_ends_every_process_and_nothing_more_begins(tmp_path):
    """Whatever result is waited for: here that of a process which ends by itself in ten minutes."""
    with pytest.raises(RaftError, match="fail x ended"), Jobs(2) as jobs:
        endless = jobs.start(lambda: jobs.call(forever(tmp_path)))
        wait_for_process(tmp_path)
        jobs.start(lambda: jobs.alone(fail, "x"))
        for _ in range(3):
            jobs.start(lambda: jobs.alone(write, str(tmp_path / "file"), ""))
        endless()
    assert are_gone(tmp_path) and not multiprocessing.active_children()
    assert not (tmp_path / "file").exists()
    with pytest.raises(RaftError, match="another stage failed"):
        jobs.call(forever(tmp_path))


def test_an_error_of_work_that_nobody_waits_for_is_told():
    with pytest.raises(RaftError, match="fail y ended"), Jobs(2) as jobs:
        jobs.start(lambda: jobs.alone(fail, "y"))


def test_an_error_of_the_caller_ends_every_process(tmp_path):
    with pytest.raises(KeyError, match="caller"), Jobs(2) as jobs:
        jobs.start(lambda: jobs.call(forever(tmp_path)))
        wait_for_process(tmp_path)
        raise KeyError("caller")
    assert are_gone(tmp_path)


@pytest.fixture
def interruptible():
    """As at a terminal: a test that is started in the background may ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interruption_ends_the_process_that_it_waits_for(tmp_path, interruptible):
    def interrupt():
        wait_for_process(tmp_path)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        Jobs().call(forever(tmp_path))
    assert are_gone(tmp_path)
