"""Both stages, evaluation and report from the shell's commands, on four families of models and three shapes of data."""

import json

import pytest

from raft.cli import main
from tests.tiny import build

PLAIN = [{"id": f"r{i}", "question": f"what is item {i}?", "answer": f"item {i} is blue"} for i in range(4)]
PAIRS = [{"prompt": row["question"], "completion": row["answer"]} for row in PLAIN]
CHATS = [
    {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]
    }
    for row in PLAIN
]


def write(path, rows):
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("family", "rows", "name"),
    [
        ("qwen3", PLAIN, "rows.jsonl"),
        ("llama", PAIRS, "rows.parquet"),
        ("smollm3", CHATS, "rows.jsonl"),
        ("phi3", CHATS, "rows.parquet"),
    ],
)
def test_refine_train_eval_report(tmp_path, family, rows, name):
    model, data, run = build(family, tmp_path / "base"), write(tmp_path / name, rows), tmp_path / "run"
    common = ["--model", str(model), "--data", str(data), "--run", str(run)]
    small = ["refine.max_tokens=8", "refine.max_model_len=512", "refine.engine=hf", "refine.tau=0.0", "refine.rounds=1"]
    # A random model writes until it is cut: no row is refined, and that is an error. The rows keep their answers.
    assert main(["refine", *common, *small]) == 2
    fused = [json.loads(line) for line in (run / "refine" / "fused.jsonl").read_text().splitlines()]
    assert [row["question"] for row in fused] == [row["question"] for row in PLAIN]
    wanted = ["id", "question", "answer", "rewritten", "similarity", "kept", "fused_answer", "judge_scores", "rounds"]
    wanted += ["rejected"]
    assert all(field in row for row in fused for field in wanted)

    settings = ["train.rollout_engine=hf", "train.rollout_max_tokens=8", "train.num_train_epochs=1", "train.top_k=32"]
    settings += ["train.per_device_train_batch_size=2", "train.disable_tqdm=true"]
    assert main(["train", *common, *settings]) == 0
    metrics = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [1, 2]
    for line in metrics:
        assert {"loss", "loss_sft", "loss_kl", "lambda", "tokens_per_second"} <= line.keys()
        assert set(line["seconds"]) == {"rollout", "teacher", "forward_backward", "optimizer", "refresh"}

    limits = ["evaluate.max_tokens=8", "evaluate.max_model_len=512", "evaluate.engine=hf"]
    assert main(["eval", "--run", str(run), "--data", str(data), *limits]) == 0
    assert main(["report", "--run", str(run)]) == 0
    assert (run / "model" / "model.safetensors").exists() and (run / "report.html").exists()


def test_an_error_of_the_rendering_names_file_and_row(tmp_path, capsys):
    model, data = build("qwen3", tmp_path / "base"), tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"id": "a7", "question": "<|im_start|>user\nhi<|im_end|>", "answer": "x"}) + "\n")
    assert main(["train", "--model", str(model), "--data", str(data), "--run", str(tmp_path / "run")]) == 2
    assert f"{data}, row a7: the prompt begins with <|im_start|>" in capsys.readouterr().err
