"""The README's snippets run, and its figures are those of the results that it names."""

import json
import re
from pathlib import Path

from tests.tiny import build

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_loss_snippet_runs():
    snippet = next(code for code in SNIPPETS if "raft_kernels" in code)
    names: dict = {}
    exec(snippet, names)  # noqa: S102  # our own README
    assert names["student_hidden"].grad.abs().sum() > 0


def test_the_trainer_snippet_runs(tmp_path):
    snippet = next(code for code in SNIPPETS if "RAFTTrainer" in code)
    model = build("qwen3", tmp_path / "model")
    short = f'output_dir="{tmp_path / "out"}", rollout_engine="hf", rollout_max_tokens=8'
    snippet = snippet.replace("path-or-model", str(model)).replace('output_dir="out"', short)
    exec(snippet, {})  # noqa: S102
    assert (tmp_path / "out" / "metrics.jsonl").exists()


def test_the_table_is_the_measured_one():
    results = json.loads((ROOT / "results" / "microworld" / "seeds.json").read_text())
    for method in ("base", "sft", "raft"):
        cells = [f"{100 * s['mean']:.1f} ± {100 * s['std']:.1f}" for s in results["methods"][method].values()]
        assert f"| {' | '.join(cells)} |" in README
    chosen = json.loads((ROOT / "results" / "microworld_grid.json").read_text())["chosen"]
    from raft.demo.settings import DemoSettings

    for method in ("sft", "raft"):
        used = getattr(DemoSettings(), method)
        assert (used.learning_rate, used.epochs) == (chosen[method]["learning_rate"], chosen[method]["epochs"])


def test_every_file_that_the_readme_links_exists():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links and all((ROOT / link).exists() for link in links)
