"""Commands for tests on several processes."""

import sys


def torchrun(module: str, *words: object, ranks: int = 2) -> list[str]:
    """Starts `module` on that many ranks of this machine, on a port that is free."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [sys.executable, "-m", *launcher, "-m", module, *map(str, words)]
