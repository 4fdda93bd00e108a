"""How much memory a model and its engine take: a process each for shared and copied weights, measured by the system."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def measured(*weights: str) -> list[dict[str, float]]:
    """Peak memory that the engine's start and a training step add to what was in use, in copies of the weights."""
    command = [sys.executable, "-m", "tests.integration.test_vllm_memory"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    children = [subprocess.Popen([*command, how], cwd=REPOSITORY, text=True, **pipes) for how in weights]
    results = []
    for child in children:
        out, error = child.communicate()
        assert child.returncode == 0, error[-3000:]
        results.append(json.loads(out.splitlines()[-1]))
    return results


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_there_is_never_a_second_copy():
    pytest.importorskip("vllm", reason="vLLM is not installed")
    shared, copied = measured("shared", "copied")
    print(f"shared {shared}, copied {copied}")
    assert shared["start"] < 0.4  # the largest tensor of the engine, and what the start itself needs
    assert copied["start"] - shared["start"] > 0.75
    assert copied["step"] - shared["step"] > 0.75


def run_one_process(weights: str) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from raft.engines import Sampling, VLLMEngine
    from tests.tiny import tokenizer

    def model(layers: int, width: int) -> Qwen3ForCausalLM:
        config = Qwen3Config(
            vocab_size=8192, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
            num_attention_heads=8, num_key_value_heads=2, head_dim=64, tie_word_embeddings=True,
        )  # fmt: skip
        return Qwen3ForCausalLM(config)

    def rss(field: str) -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split(f"{field}:")[1].split()[0]) * 1024

    def most_since() -> int:
        peak = rss("VmHWM")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        return peak

    prompts, sampling = [[5, 6, 7]] * 4, Sampling(temperature=1.0, max_tokens=4)
    first = VLLMEngine(model(1, 64), tokenizer(), max_model_len=128, max_num_seqs=4)  # loads libraries, once
    first.generate(prompts, sampling)
    first.close()

    student = model(6, 1024)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    size = sum(p.nbytes for p in student.parameters())
    gc.collect()
    before = rss("VmRSS")
    most_since()
    engine = VLLMEngine(student, tokenizer(), max_model_len=128, max_num_seqs=4, weights=weights)
    start = most_since() - before
    ids = torch.randint(0, 8192, (1, 16))
    student(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    engine.refresh()
    engine.generate(prompts, sampling)
    step = most_since() - before
    print(json.dumps({"start": start / size, "step": step / size, "mib": size / 2**20}))
    engine.close()


if __name__ == "__main__":
    run_one_process(sys.argv[1])
