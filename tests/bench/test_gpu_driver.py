"""`python -m bench gpu` and `python -m bench records`: no stage stops the others, and what was written comes back."""

import ast
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from bench import archive, gpu, gpu_stages
from bench.common import files
from bench.gpu_stages import Stage
from bench.kernels import device_tests

ROOT = Path(gpu.__file__).parents[1]
CRASH = "import os, sys; print('about to crash', flush=True); os.abort()"
# Deaf to interruptions, and with a child of its own that is too.
HANG = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("hangs", child.pid, flush=True)
time.sleep(600)
"""
SAVES = """
import os, pathlib, time
try:
    print("works", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    pathlib.Path(os.environ["BENCH_RESULTS"], "saved-cpu.json").write_text("[]")
    print("saved", flush=True)
"""
SAYS = (
    "import os; print(os.environ['BENCH_COMMIT'], os.environ.get('PLANTED'), 'PYTHONDONTWRITEBYTECODE' in os.environ)"
)


def planted(name: str, code: str, limit_s: float = 60, **options) -> Stage:
    return Stage(name, limit_s, 1, ("-c", code), **options)


def drive(monkeypatch, tmp_path, stages, *words) -> tuple[int, dict[str, dict]]:
    monkeypatch.setattr(gpu, "stages", lambda device: stages)
    monkeypatch.setattr(gpu, "GRACE_S", 2.0)
    code = gpu.main(["--device", "cpu", "--out", str(tmp_path / "out"), *words])
    return code, {r["name"]: r for r in json.loads((tmp_path / "out" / "stages.json").read_text())}


def names_in(path: Path) -> set[str]:
    with tarfile.open(path) as found:
        return set(found.getnames())


def test_a_crash_a_hang_and_silence_cost_their_own_time_only(monkeypatch, tmp_path, capsys):
    real = {stage.name: stage for stage in gpu_stages.stages("cpu")}
    stages = [
        planted("crash", CRASH),
        planted("hang", HANG, limit_s=5),
        planted("silence", ""),
        planted("saves", SAVES, limit_s=5),
        planted("absent", "", absent=lambda results: "nothing is installed"),
        planted("says", SAYS, environment={"PLANTED": "yes"}),
        real["profile"],
        Stage("late", 60, 10_000, ("-c", "")),
    ]
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    code, rows = drive(monkeypatch, tmp_path, stages, "--minutes", "5")
    assert code == 1 and list(rows) == [stage.name for stage in stages]
    assert all(sorted(r) == ["code", "name", "seconds", "skipped", "tail"] for r in rows.values())
    assert rows["crash"]["code"] == -signal.SIGABRT and "about to crash" in rows["crash"]["tail"]
    assert rows["hang"]["code"] == -signal.SIGKILL and 5 <= rows["hang"]["seconds"]
    assert "stopped at its limit of 5 s" in rows["hang"]["tail"]
    grandchild = int(rows["hang"]["tail"].split()[1])
    for _ in range(100):  # killed, and gone as soon as the system has taken note
        state = Path(f"/proc/{grandchild}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("a child of the stage that hung is still running")
    assert rows["silence"] | {"seconds": 0} == {
        "name": "silence",
        "code": 0,
        "seconds": 0,
        "skipped": None,
        "tail": "",
    }
    assert rows["saves"]["code"] == 0 and "saved" in rows["saves"]["tail"]
    assert (rows["absent"]["code"], rows["absent"]["skipped"]) == (None, "nothing is installed")
    assert rows["says"]["tail"] == f"{files.commit()} yes False"
    assert rows["profile"]["code"] == 0
    assert rows["late"]["code"] is None and "it takes 10000 at least" in rows["late"]["skipped"]
    out = capsys.readouterr().out
    assert "crash              -6" in out and "skipped: nothing is installed" in out
    inside = names_in(tmp_path / "out" / "results.tgz")
    assert {"stages.json", "logs/crash.txt", "logs/silence.txt", "results/saved-cpu.json"} <= inside
    assert {"results/profile-cpu.json", "results/profile-cpu.md"} <= inside

    into = tmp_path / "into"
    assert archive.main([str(tmp_path / "out" / "results.tgz"), "--into", str(into)]) == 0
    assert {p.name for p in into.iterdir()} == {
        "gpu-cpu.json",
        "profile-cpu.json",
        "profile-cpu.md",
        "saved-cpu.json",
    }
    assert {r["op"] for r in json.loads((into / "profile-cpu.json").read_text())} == {"linear_topk_kl"}
    assert "| student backward | **all, not profiled** |" in capsys.readouterr().out


def test_the_archive_is_good_after_every_stage(monkeypatch, tmp_path):
    seen = []
    pack = gpu.pack

    def watched(work, target):
        pack(work, target)
        seen.append(sorted(name for name in names_in(target) if name.startswith("logs/")))

    monkeypatch.setattr(gpu, "pack", watched)
    drive(monkeypatch, tmp_path, [planted("one", ""), planted("two", "")])
    assert seen == [["logs/one.txt"], ["logs/one.txt", "logs/two.txt"]]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"results.tgz", "stages.json"}


def test_only_some_stages(monkeypatch, tmp_path, capsys):
    stages = [planted("one", ""), planted("two", ""), planted("three", "")]
    code, rows = drive(monkeypatch, tmp_path, stages, "--only", "three,one")
    assert code == 0 and list(rows) == ["one", "three"]
    with pytest.raises(SystemExit):
        drive(monkeypatch, tmp_path, stages, "--only", "four")
    assert "four unknown; there are one, two, three" in capsys.readouterr().err


def test_an_interruption_of_the_whole_keeps_what_there_is(tmp_path):
    """As a shell starts it in the background: deaf to SIGINT, which its stages must not be."""
    code = f"""
import signal, sys
from bench import gpu
from bench.gpu_stages import Stage
gpu.stages = lambda device: [Stage("saves", 60, 1, ("-c", {SAVES!r}))] + [Stage("hang", 60, 1, ("-c", {HANG!r}))]
gpu.GRACE_S = 1.0
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.default_int_handler)
sys.exit(gpu.main(["--device", "cpu", "--out", {str(tmp_path)!r}]))
"""
    code = code.replace('Stage("saves", 60', 'Stage("saves", 3')
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("hang: at most"):
            break
    time.sleep(2)
    os.kill(child.pid, signal.SIGTERM)
    rest, _ = child.communicate(timeout=60)
    assert child.returncode == 130, rest
    rows = {r["name"]: r for r in json.loads((tmp_path / "stages.json").read_text())}
    assert rows["saves"]["code"] == 0 and "saved" in rows["saves"]["tail"]
    assert rows["hang"]["skipped"] == "interrupted"
    assert "results/saved-cpu.json" in names_in(tmp_path / "results.tgz")


def test_without_a_gpu_it_says_so_at_once(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path / "out")])
    assert "there is no NVIDIA GPU here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_stage_has_a_command_that_there_is(device):
    from bench.__main__ import COMMANDS

    found = gpu_stages.stages(device)
    assert [stage.name for stage in found] == [
        *("env", "smoke", "point", "profile", "numbers", "tune", "tuned", "compiled-tests", "compiled"),
        *("axes", "rest", "step", "sanitizer", "rollout"),
    ]
    for stage in found:
        assert stage.words[:2] == ("-m", "bench") and stage.words[2] in COMMANDS
        assert stage.least_s <= stage.limit_s


def test_every_stage_understands_its_words(monkeypatch):
    """The parsers of the commands take the words of the GPU's stages; what needs a GPU to be checked is let through."""
    from bench.kernels import compare, profile, tune
    from bench.steps import rollout, train

    monkeypatch.setattr(tune.torch.cuda, "is_available", lambda: True)
    parsers = {"kernels": compare.parse, "train": train.parse, "rollout": rollout.parse, "tune": tune.parse}
    parsed = {}
    for stage in gpu_stages.stages("cuda"):
        command, words = stage.words[2], list(stage.words[3:])
        if command in parsers:
            parsed[stage.name] = parsers[command](words)
    assert [work.name for work in parsed["step"].models] == ["SmolLM3-3B", "Llama-3.2-3B", "Phi-4-mini"]
    assert parsed["tuned"].tuned == Path() and parsed["axes"].sweep == "axes"
    assert not parsed["rollout"].eager and parsed["rollout"].models[0].name == "SmolLM3-2-layers"
    assert profile.PARTS


# Archives


def made(path: Path, **files: str) -> Path:
    with tarfile.open(path, "w:gz") as target:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            target.addfile(info, io.BytesIO(text.encode()))
    return path


def test_records_of_an_archive_and_nothing_else(tmp_path):
    machine = json.dumps([{"device": "NVIDIA H200"}])
    files = {"stages.json": "[]", "results/machine-h200.json": machine, "results/kernels-h200-point.md": "table"}
    more = {
        "logs/env.txt": "log",
        "results/../../escape.json": "[]",
        "/results/absolute.json": "[]",
        "results/x.py": "x",
    }
    path = made(tmp_path / "a.tgz", **files, **more)
    paths = archive.unpack(path, tmp_path / "deep" / "into")
    assert [p.name for p in paths] == ["gpu-h200.json", "machine-h200.json"]
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [
        *("a.tgz", "gpu-h200.json", "kernels-h200-point.md", "machine-h200.json")
    ]


def test_the_stages_of_a_second_call_join_those_of_the_first(tmp_path):
    def row(name, code=None, skipped=None):
        return {"name": name, "code": code, "seconds": 1.0, "skipped": skipped, "tail": ""}

    of_device = {"results/tests-h200-rest.json": json.dumps([{"device": "NVIDIA H200"}])}
    first = [row("env", 0), row("rest", skipped="no time"), row("step", skipped="no time")]
    second = [row("rest", 1), row("step", skipped="no time"), row("rollout", 0)]
    for name, stages in (("a", first), ("b", second)):
        path = made(tmp_path / f"{name}.tgz", **{"stages.json": json.dumps(stages), **of_device})
        archive.unpack(path, tmp_path / "into")
    found = json.loads((tmp_path / "into" / "gpu-h200.json").read_text())
    assert {r["name"]: (r["code"], r["skipped"]) for r in found} == {
        "env": (0, None),
        "rest": (1, None),
        "step": (None, "no time"),
        "rollout": (0, None),
    }


def test_an_earlier_archive_is_not_written_over(monkeypatch, tmp_path, capsys):
    drive(monkeypatch, tmp_path, [planted("one", "")])
    with pytest.raises(SystemExit):
        drive(monkeypatch, tmp_path, [planted("one", "")])
    assert "holds the results of an earlier call; name another folder" in capsys.readouterr().err


def test_the_driver_does_not_wait_for_torch():
    """Its clock would start after the import, which takes half a minute from a cold disk."""
    program = "import sys, bench.gpu; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True).strip() == "False"


def test_what_is_no_archive_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "text.tgz").write_text("no archive")
    made(tmp_path / "other.tgz", **{"results/kernels.json": "[]"})
    made(tmp_path / "half.tgz", **{"stages.json": "[]", "results/kernels-h200.json": "[{"})
    for name, message in (
        ("missing.tgz", "not an archive of `python -m bench gpu`"),
        ("text.tgz", "not an archive of `python -m bench gpu`"),
        ("other.tgz", "it has no stages.json"),
        ("half.tgz", "half.tgz: kernels-h200.json is not whole"),
    ):
        with pytest.raises(SystemExit):
            archive.main([str(tmp_path / name), "--into", str(tmp_path / "into")])
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "into").exists()


# The tests of a GPU, in groups


def test_each_test_of_a_gpu_is_in_one_group():
    tree = ast.parse(device_tests.FILE.read_text())
    tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
    listed = [name for names in device_tests.GROUPS.values() for name in names]
    assert len(listed) == len(set(listed)) and set(listed) <= tests
    for test in tests:
        assert sum(device_tests.in_group(test, group) for group in device_tests.GROUPS) == 1
    assert {test for test in tests if device_tests.in_group(test, "rest")} == {
        "test_peak_memory",
        "test_no_host_synchronisation",
        "test_runs_in_a_cuda_graph",
        "test_tensors_of_another_gpu",
    }


def test_after_a_lost_gpu_the_rest_of_the_tests_run(tmp_path):
    tests = tmp_path / "test_made_up.py"
    tests.write_text(
        "import pytest\n"
        "failed = []\n"
        "@pytest.fixture(autouse=True)\n"
        "def free_memory():\n"
        "    yield\n"
        "    assert not failed, 'nothing can be freed on a GPU that is lost'\n"
        "def test_fine(): pass\n"
        "@pytest.mark.parametrize('a', [1, 2])\n"
        "def test_broken(a):\n"
        "    if a == 2: failed.append(a)\n"
        "    assert a == 1, 'a is wrong'\n"
        "def test_after(): pass\n"
        "def test_skipped(): pytest.skip('no second GPU')\n"
    )
    out = tmp_path / "tests.json"
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "from bench.kernels import device_tests, lost\n"
        f"device_tests.FILE = Path({str(tests)!r})\n"
        "def check(device, culprit):\n"
        "    raise lost.DeviceLost(culprit)\n"
        "def again(*words):\n"
        "    print('again', *words, flush=True)\n"
        "    os.execv(sys.executable, [sys.executable, __file__, *words[1:]])\n"
        "lost.check_answers, lost.start_again = check, again\n"
        "sys.exit(device_tests.main(sys.argv[1:]))\n"
    )
    words = [sys.executable, str(program), "--group", "rest", "--out", str(out)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = {**os.environ, "PYTHONPATH": path}
    run = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    found = {r["test"]: r for r in json.loads(out.read_text())}
    assert run.stdout.count("again tests --group rest") == 1
    assert {name: r["outcome"] for name, r in found.items()} == {
        "test_fine": "passed",
        "test_broken[1]": "passed",
        "test_broken[2]": "lost the GPU",
        "test_after": "passed",
        "test_skipped": "skipped",
    }
    assert "a is wrong" in found["test_broken[2]"]["message"] and found["test_skipped"]["message"] == "no second GPU"
    assert run.returncode == 1 and "1 lost the GPU, 3 passed, 1 skipped" in run.stdout
    assert "_ test_broken[2] _" in run.stdout  # pytest's own account of it
