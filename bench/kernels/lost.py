"""A GPU that no longer answers. One illegal access ends CUDA for the whole process: a run has to start again in a new
process, without what caused it, or every later figure would be an error."""

import os
import sys
from typing import NoReturn

import torch


class DeviceLost(Exception):
    """`culprit`: what ran when the GPU stopped answering."""

    def __init__(self, culprit: str):
        super().__init__(f"the GPU no longer answers after {culprit}")
        self.culprit = culprit


def check_answers(device: str, culprit: str) -> None:
    """Raises DeviceLost. To be called after an error."""
    if device == "cuda":
        try:
            torch.cuda.synchronize()
        except Exception as error:
            raise DeviceLost(culprit) from error


def start_again(*words: str) -> NoReturn:
    """This process becomes `python -m bench <words>`: it stays in its process group and loses its CUDA context."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "bench", *words])
