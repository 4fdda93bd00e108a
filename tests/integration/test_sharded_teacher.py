"""Two ranks with FSDP2 shards of a LoRA model: the teacher is the base, also where a rank has nothing to score."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks import torchrun

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_teacher_of_a_sharded_model(tmp_path):
    pytest.importorskip("peft")
    from tests.tiny import build

    command = torchrun("tests.integration.test_sharded_teacher", build("qwen3", tmp_path), tmp_path / "out")
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(re.findall(r"rank \d: .*? met", done.stdout)) == ["rank 0: 2 equal, met", "rank 1: 0 equal, met"]


def run_one_process(folder: str, out: str) -> None:
    import peft
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from raft.engines import Completion
    from raft.train.rollout import Scored
    from raft.train.trainer import RAFTTrainer
    from tests.golden.training import Recorder, config, rows

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), lora)
    made = RAFTTrainer(model, config(out), rows(), processing_class=tokenizer, engine=Recorder(model, tokenizer))
    assert made.teacher is not None

    def drawn() -> list[Scored]:
        return [Scored(example, Completion([9, 10, 11], "length")) for example in made.train_dataset[:2]]

    whole = drawn()
    made.teacher.score(whole, made.args, model)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.base_model.model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    made.model_wrapped = model
    scored = [] if rank else drawn()
    made.scoring.score(scored, [], made.model_wrapped)
    for one, other in zip(scored, whole, strict=False):
        assert one.teacher is not None and other.teacher is not None
        torch.testing.assert_close(one.teacher.logits, other.teacher.logits)
    dist.barrier()
    print(f"rank {rank}: {len(scored)} equal, met", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    run_one_process(*sys.argv[1:])
