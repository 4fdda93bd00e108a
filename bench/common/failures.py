"""Why a provider was left out of a run, in one line."""

import re

import torch


class Unavailable(Exception):
    """A provider cannot run on this machine."""


def reason(error: BaseException) -> str:
    """One line about an error."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    first = (str(error).strip() or "no message").splitlines()[0]
    first = re.sub(r" \(/[^)]*\)", "", first)  # the path of the importing module means nothing on other machines
    return first if isinstance(error, Unavailable) else f"{type(error).__name__}: {first}"[:160]
