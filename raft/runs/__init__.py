"""A run is one folder: its paths, and files that a kill at any moment leaves whole."""

from raft.runs.files import JsonlAppender, read_json, read_jsonl, repair_jsonl, write_json, write_text
from raft.runs.paths import Run

__all__ = ["JsonlAppender", "Run", "read_json", "read_jsonl", "repair_jsonl", "write_json", "write_text"]
