"""What the children of tests/bench/test_bench_turns.py do: each is `work(desk, ...)` of bench.common.turns."""

import os
import sys


def count(desk, turns):
    desk.ready({"turns": turns})
    for turn in range(turns):
        desk.go()
        desk.hand_in(turn * 10)
    return {"pid": os.getpid(), "threshold": os.environ.get("MALLOC_MMAP_THRESHOLD_"), "prefix": sys.pycache_prefix}


def fail(desk, turns):
    desk.ready({})
    desk.go()
    print("a long story")
    raise ValueError("no such kernel\nand more")


def die(desk, turns):
    os._exit(3)
