"""Hides messages and progress bars of libraries that are of no use to the user of a training."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed import get_world_size
from transformers.utils import logging as transformers_logging


def _tells(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    if text.startswith("mtime may not be reliable"):
        return False  # transformers then orders checkpoints by number, which is what we want
    alone = torch.distributed.is_available() and torch.distributed.is_initialized() and get_world_size() == 1
    # vLLM initialises a process group even for one process.
    return not (alone and text.startswith("torch.distributed process group is initialized"))


for _name in ("transformers.trainer_utils", "transformers.training_args"):
    logging.getLogger(_name).addFilter(_tells)


@contextmanager
def without_bars() -> Iterator[None]:
    """Hides the progress bars of transformers, such as the one for writing the shards of a checkpoint.

    Not by its public functions: turning the bars on again would also turn on those of huggingface_hub.
    """
    shown = getattr(transformers_logging, "_tqdm_active", True)
    transformers_logging._tqdm_active = False
    try:
        yield
    finally:
        transformers_logging._tqdm_active = shown
