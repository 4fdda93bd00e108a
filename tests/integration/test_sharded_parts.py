"""Two ranks with FSDP2 shards: gradients made in the forward pass reach every shard, and a shared head from both its
uses."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks import torchrun

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "llama"])  # embedding and head are one, and are two
def test_measured_losses_of_a_sharded_model(tmp_path, family):
    from tests.tiny import build

    # Written here: with a process group transformers would write on the first rank alone.
    folders = build(family, tmp_path / "student"), build(family, tmp_path / "teacher", seed=1)
    command = torchrun("tests.integration.test_sharded_parts", *folders, tmp_path / "out")
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("gradients are equal") == 2


def run_one_process(folder: str, teacher_folder: str, out: str) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from raft.engines import Completion
    from raft.train.batching import Unit
    from raft.train.losses import student_batch
    from raft.train.rollout import Scored
    from raft.train.trainer import RAFTTrainer
    from tests.golden.training import Recorder, config, rows

    dist.init_process_group("gloo")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    teacher = AutoModelForCausalLM.from_pretrained(teacher_folder)
    made = RAFTTrainer(
        model, config(out), rows(), processing_class=tokenizer, engine=Recorder(model, tokenizer), teacher=teacher
    )
    examples = made.train_dataset[:2]
    scored = [Scored(example, Completion([9, 10, 11, 12], "length")) for example in examples]
    made.teacher.score(scored, made.args, model)
    batch = student_batch([Unit(e, (s,), True) for e, s in zip(examples, scored, strict=True)], share=True)

    def gradients(measured: bool) -> tuple[dict[str, torch.Tensor], object]:
        model.zero_grad()
        with made.student.attention():
            found = made._losses(model, batch, measured=measured)
            (found.sft + 2 * found.kl).backward()
        whole = {
            n: p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for n, p in model.named_parameters()
        }
        return {name: gradient.clone() for name, gradient in whole.items()}, found

    expected, plain = gradients(False)
    _, unsharded = gradients(True)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    got, sharded = gradients(True)
    torch.testing.assert_close(sharded.kl, plain.kl)
    torch.testing.assert_close(sharded.squares, unsharded.squares)
    assert all(square > 0 for square in sharded.squares)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    dist.barrier()
    print("gradients are equal", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    run_one_process(*sys.argv[1:])
