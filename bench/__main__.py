"""python -m bench kernels|rollout|train|... [options]: runs a benchmark, prints its table and writes its records."""

import importlib
import os
import sys

# Command -> its module in this package.
COMMANDS = {
    "kernels": "kernels.compare",
    "rollout": "steps.rollout",
    "train": "steps.train",
    "tune": "kernels.tune",
    "profile": "kernels.profile",
    "busy": "steps.busy",
    "refine": "steps.refine",
    "tests": "kernels.device_tests",
    "machine": "common.machine",
    "gpu": "gpu",
    "records": "archive",
}


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        print(f"usage: python -m bench {{{','.join(COMMANDS)}}} [options]; --help after the name lists them")
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    # Without it the memory profiler of torch logs every start and stop.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    return importlib.import_module(f"bench.{COMMANDS[argv[0]]}").main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
