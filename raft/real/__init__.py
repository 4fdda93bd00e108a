"""RAFT and SFT on a real model and real data, evaluated on the domain and on general skills before and after training.

The data is not part of the project: the environment variable `RAFT_DATA_DIR` names its folder.
"""

# Environment variables that name folders outside the repository.
REAL_MODEL, DATA_DIR = ("RAFT_REAL_MODEL", "RAFT_DATA_DIR")
