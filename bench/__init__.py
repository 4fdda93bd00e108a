"""Benchmarks: `python -m bench kernels|train|rollout|...`. Every figure in our tables is in their records."""

import importlib.util
import sys
from pathlib import Path

# A checkout can be measured without being installed.
if importlib.util.find_spec("raft_kernels") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "kernels"))
