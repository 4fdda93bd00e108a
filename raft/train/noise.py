"""What libraries say during a training that tells its user nothing."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed import get_world_size
from transformers.utils import logging as transformers_logging


def _tells(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    if text.startswith("mtime may not be reliable"):
        return False  # checkpoints of a short run are then ordered by their numbers, as they should be
    alone = torch.distributed.is_available() and torch.distributed.is_initialized() and get_world_size() == 1
    return not (alone and text.startswith("torch.distributed process group is initialized"))  # vLLM's own


for _name in ("transformers.trainer_utils", "transformers.training_args"):
    logging.getLogger(_name).addFilter(_tells)


@contextmanager
def without_bars() -> Iterator[None]:
    """transformers draws no bars, as of the shards of a checkpoint that is written.

    Its public switch would also turn on bars of huggingface_hub that somebody had turned off.
    """
    shown = getattr(transformers_logging, "_tqdm_active", True)
    transformers_logging._tqdm_active = False
    try:
        yield
    finally:
        transformers_logging._tqdm_active = shown
