"""The folder of a run: its paths, and files that stay readable if the process is killed while writing."""

from raft.runs.files import JsonlAppender, read_json, read_jsonl, repair_jsonl, write_json, write_text
from raft.runs.paths import Run

__all__ = ["JsonlAppender", "Run", "read_json", "read_jsonl", "repair_jsonl", "write_json", "write_text"]
