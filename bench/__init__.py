"""Benchmarks: `python -m bench kernels|rollout|train`. Every figure in a table of this repository comes from a record they write."""

import importlib.util
import sys
from pathlib import Path

# A checkout can be measured without being installed.
if importlib.util.find_spec("raft_kernels") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "kernels"))
