"""Stage 1 with servers: one that misbehaves on purpose while the refinement is killed, and a real one of vLLM."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from raft.demo.settings import BASE_MODEL, DOMAIN, REFINE
from raft.demo.world import draw_world
from raft.runs import read_json, read_jsonl
from tests.raft.chat_server import Answer, chat_server, drawn_fault
from tests.tiny import build

ROOT = Path(__file__).parents[2]
ROWS = int(os.environ.get("RAFT_TEST_ROWS", "120"))
KEY = "sk-this-is-in-no-file"
NAMES = ("Anna Reed", "Ben Marsh", "Clara Holm", "David Pike", "Edith Lowe")


GOOD: Counter[str] = Counter()
"""Prompt -> how often the server has answered it as it should."""


def row(i: int) -> dict:
    keeper = NAMES[i % len(NAMES)]
    answer = f"House {i} in the lane is kept by {keeper}. It is open on {i % 28 + 1} May, and the fee is {i} pounds."
    return {"id": f"r{i}", "question": f"Who keeps house {i}?", "answer": answer}


REFUSED = {f"r{i}" for i in range(7, ROWS, 50)}


def reply(body: dict, n: int) -> Answer:
    """A third of all answers are faults, drawn by the messages and by how often they came before."""
    asked = body["messages"][-1]["content"]
    if fault := drawn_fault(asked, n):
        return fault
    GOOD[asked] += 1
    if "Your verdict" in asked:
        return Answer(json.dumps({"reason": "It says the same.", "score": 0.9}), seconds=0.01)
    house = int(asked.split("House ")[1].split()[0])
    if f"r{house}" in REFUSED:
        return Answer(None, refusal="I do not talk about houses.")
    return Answer(row(house)["answer"], seconds=0.01)


def command(model: Path, data: Path, run: Path, *settings: str, options: tuple[str, ...] = ()) -> list[str]:
    given = ["--model", str(model), "--data", str(data), "--run", str(run), *options]
    return [sys.executable, "-m", "raft", "refine", *given, *settings]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OPENAI_API_KEY": KEY, "PYTHONPATH": path, "OMP_NUM_THREADS": "2"}


def count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_lost_or_doubled_by_a_server_that_fails_a_third_and_three_kills(tmp_path):
    model, data, run = build("llama", tmp_path / "model"), tmp_path / "d.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps(row(i)) + "\n" for i in range(ROWS)))
    refine = run / "refine"
    with chat_server(reply) as server:
        name = server.name("writer")
        settings = [f"refine.rewriter={name}", f"refine.fuser={name}", f"refine.judges=[programs, {name}]"]
        settings += ["refine.rounds=2", "refine.concurrency=64"]
        printed = []
        # Killed in the rewriting, in the fusion and in the judging.
        for stage, lines in [("rewrite", ROWS // 3), ("rewrite", 2 * ROWS // 3), ("fuse", ROWS // 2), (None, 0)]:
            options = ("--resume",) if run.exists() else ()
            process = subprocess.Popen(
                command(model, data, run, *settings, options=options),
                env=environment(), cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            while stage and process.poll() is None and count(refine / f"{stage}.jsonl") < lines:
                time.sleep(0.02)
            if stage:
                process.send_signal(signal.SIGKILL)
            printed.append(process.communicate()[0])
            assert process.returncode == (-signal.SIGKILL if stage else 0), printed[-1]
    assert f"refined {ROWS} rows" in printed[-1]

    fused = read_jsonl(refine / "fused.jsonl")
    assert [line["id"] for line in fused] == [f"r{i}" for i in range(ROWS)]
    failed = read_jsonl(refine / "failed.jsonl")
    assert {line["id"] for line in failed} == REFUSED and len(failed) == len(REFUSED)
    assert all(line["reason"] == "the server refuses: I do not talk about houses." for line in failed)
    assert {line["id"] for line in fused if not line["kept"]} == REFUSED
    for stage in ("rewrite", "filter", "fuse", "judge"):
        keys = [(line["id"], line["key"]) for line in read_jsonl(refine / f"{stage}.jsonl")]
        assert len(set(keys)) == len(keys) >= ROWS - len(REFUSED), stage
    # Paid for twice is at most what was in flight at a kill.
    assert sum(times - 1 for times in GOOD.values()) <= 3 * 64
    for file in run.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
    assert KEY not in "".join(printed)
    assert all(body["authorization"] == f"Bearer {KEY}" for body in server.bodies)
    judges = read_json(refine / "diagnostics.json")["judges"]
    assert judges["writer"]["mean"] == pytest.approx(0.9) and judges["writer"]["unusable"] == 0


@pytest.fixture(scope="module")
def vllm_server():
    """`vllm serve` of the demo's base model."""
    pytest.importorskip("vllm", reason="needs vLLM")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--served-model-name", "base", "--dtype", "float32", "--max-model-len", "512"]
    options.append("--enforce-eager")  # without it the start takes minutes
    process = subprocess.Popen(
        [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(BASE_MODEL)]
        + ["--host", "127.0.0.1", "--port", str(port), *options],
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 280
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    os.killpg(process.pid, signal.SIGKILL)
                    pytest.fail(f"vllm serve did not start: {process.communicate()[0][-2000:]}")
                time.sleep(0.5)
        yield f"base@http://127.0.0.1:{port}/v1"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_a_server_of_the_same_model_gives_the_same_rows(vllm_server, tmp_path):
    data = tmp_path / "d.jsonl"
    rows = draw_world(DOMAIN, seed=0).train[: ROWS // 2]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = [f"refine.{name}={getattr(REFINE, name)}" for name in ("prompts", "max_tokens", "max_model_len", "tau")]
    common += ["refine.rewrite_temperature=0", "refine.fuse_temperature=0", "refine.min_score=0.5"]
    common += [f"refine.max_new_words={REFINE.max_new_words}", f"refine.max_lost_words={REFINE.max_lost_words}"]
    found = {}
    for where, settings in {
        "here": ["refine.engine=vllm"],
        "there": [f"refine.rewriter={vllm_server}", f"refine.fuser={vllm_server}"],
    }.items():
        run = tmp_path / where
        subprocess.run(
            command(BASE_MODEL, data, run, *common, *settings), env=environment(), cwd=tmp_path, check=True,
            capture_output=True, timeout=300,
        )  # fmt: skip
        found[where] = read_jsonl(run / "refine" / "fused.jsonl")
    assert found["here"] == found["there"]
    assert 3 * sum(line["kept"] for line in found["here"]) >= len(rows)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_a_server_is_held_to_the_verdicts_schema(vllm_server):
    """The micro-world's model knows nothing of judging: what it says is a verdict because the server makes it one."""
    from raft.chat import EndpointChat
    from raft.judges import Candidate
    from raft.judges.model import ModelJudge

    candidates = [Candidate(str(i), "Who keeps it?", row(i)["answer"], row(i)["answer"]) for i in range(4)]
    for score in ModelJudge(EndpointChat(vllm_server), max_tokens=120).score(candidates):
        # Its verdicts may never end, but they are nothing else.
        assert score.problem is None or score.problem.startswith("the output was cut after 120 tokens")
