"""The figures of kernels/README.md are those of the committed records."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
LABELS = {
    "raft_kernels": "raft_kernels",
    "torch.compile": "plain torch, compiled",
    "torch": "plain torch",
    "liger_jsd": "Liger chunked JSD",
    "trl": "TRL chunked divergence",
}


def test_the_table_is_that_of_the_records():
    records = json.loads((ROOT / "bench/results/kernels-cpu-both.json").read_text())
    whole = {(r["regime"], r["provider"]): r for r in records if (r["op"], r["pass"]) == ("linear_topk_kl", "full")}
    lines = (ROOT / "kernels/README.md").read_text().splitlines()
    for provider, label in LABELS.items():
        randn, zipf = whole["randn", provider], whole["zipf", provider]
        figures = f"{randn['ms_p50']:.0f} | {zipf['ms_p50']:.0f} | {randn['peak_mib']:.0f} |"
        assert f"| {label} | {randn['loss']} | {figures}" in lines
    ours, trl = whole["randn", "raft_kernels"], whole["randn", "trl"]
    readme = (ROOT / "README.md").read_text()
    assert f"{ours['ms_p50']:.0f} ms and {ours['peak_mib']:.0f} MiB where TRL's divergence takes" in readme
    assert f"{trl['ms_p50']:,.0f} ms and {trl['peak_mib']:,.0f} MiB" in readme
