"""transformers' setting `use_liger_kernel` in this trainer. Liger has only Triton kernels, so they run interpreted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raft.errors import ConfigError
from tests.golden.training import config, exact, trainer

REPOSITORY = Path(__file__).parents[2]


def test_on_a_cpu_it_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="use_liger_kernel: expected false on a CPU"):
        trainer(tmp_path, use_liger_kernel=True)
    assert not config(tmp_path).use_liger_kernel


@pytest.mark.slow
def test_a_step_with_ligers_layers_is_the_same_step(tmp_path):
    pytest.importorskip("liger_kernel", reason="Liger is not installed")
    paths = os.pathsep.join(str(REPOSITORY / folder) for folder in ("", "kernels", "examples"))
    command = [sys.executable, "-m", "tests.raft.test_train_liger", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": paths, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "student LigerRMSNorm LigerSwiGLUMLP, teacher LigerRMSNorm LigerSwiGLUMLP" in done.stdout
    for name in ("loss", "loss_sft", "loss_kl", "lambda", "grad_norm"):
        plain, liger = (exact(tmp_path / kind / "metrics.jsonl")[0][name] for kind in ("plain", "liger"))
        assert liger == pytest.approx(plain, rel=1e-4), name


def run_one_process(folder: Path) -> None:
    import triton_on_cpu  # noqa: F401

    from raft_kernels import use_backend

    with use_backend("torch"):
        for kind in ("plain", "liger"):
            made = trainer(
                folder / kind, use_liger_kernel=kind == "liger", max_steps=1, rollout_temperature=0.0,
                rollout_max_tokens=3, train_sampling_strategy="sequential",
            )  # fmt: skip
            made.train()
    layers = [m.get_decoder().layers[0] for m in (made.model, made.teacher.model.inner)]
    names = [f"{layer.input_layernorm._get_name()} {layer.mlp._get_name()}" for layer in layers]
    print(f"student {names[0]}, teacher {names[1]}")


if __name__ == "__main__":
    run_one_process(Path(sys.argv[1]))
