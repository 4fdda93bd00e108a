"""RAFT beside SFT on a real model and real data, asked about the domain and about general skills before and after.

The data is not part of the project: a folder holds it, which the environment variable `RAFT_DATA_DIR` names.
"""

REAL_MODEL, DATA_DIR = (
    "RAFT_REAL_MODEL",
    "RAFT_DATA_DIR",
)  # environment variables with folders that are not part of the repository
