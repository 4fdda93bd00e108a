"""Two training processes, each with an engine of its own: the weights of DDP are shared, those of FSDP2 gathered."""

import copy
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks import torchrun

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.vllm
@pytest.mark.slow
def test_engines_follow_ddp_and_fsdp2(tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from tests.tiny import build

    command = torchrun("tests.integration.test_vllm_processes", build("qwen3", tmp_path))
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    # Two processes write to one pipe: a line of one may begin before the other's has ended.
    assert sorted(re.findall(r"rank \d: .*? still there", done.stdout)) == [
        "rank 0: ddp shared, fsdp2 copied, 2 still there",
        "rank 1: ddp shared, fsdp2 copied, 2 still there",
    ]


def run_one_process(folder: str) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoModelForCausalLM

    from raft.engines import HFEngine, Sampling, VLLMEngine
    from tests.tiny import tokenizer

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    rng = random.Random(rank)  # each process has prompts of its own
    prompts = [[rng.randrange(10, 900) for _ in range(rng.randrange(1, 40))] for _ in range(6)]
    greedy = Sampling(temperature=0, max_tokens=12)
    tokens = tokenizer()
    model = AutoModelForCausalLM.from_pretrained(folder)

    def train(wrapped) -> None:
        torch.manual_seed(rank)
        optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2)
        for _ in range(2):
            ids = torch.randint(10, 900, (2, 16))
            wrapped(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def follows(engine, plain) -> bool:
        return engine.generate(prompts, greedy) == HFEngine(plain, tokens).generate(prompts, greedy)

    sharded = copy.deepcopy(model)
    engine = VLLMEngine(model, tokens, max_model_len=128, max_num_seqs=8)
    train(torch.nn.parallel.DistributedDataParallel(model))
    engine.refresh()
    assert follows(engine, model)
    ddp = engine.weights.mode
    engine.close()

    plain = copy.deepcopy(sharded)
    mesh = init_device_mesh("cpu", (2,))
    for layer in sharded.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    engine = VLLMEngine(sharded, tokens, max_model_len=128, max_num_seqs=8)
    train(sharded)
    engine.refresh()
    plain.load_state_dict({name: p.full_tensor() for name, p in sharded.state_dict().items()})
    assert follows(engine, plain)
    fsdp = engine.weights.mode
    engine.close()

    together = torch.ones(1)
    dist.all_reduce(together)  # closing the engines has left the process group of the training alone
    print(f"rank {rank}: ddp {ddp}, fsdp2 {fsdp}, {int(together)} still there", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    run_one_process(sys.argv[1])
