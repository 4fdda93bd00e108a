"""What libraries say during a training that tells its user nothing."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

_SAYS_NOTHING = (
    "mtime may not be reliable",  # checkpoints of a short run are then ordered by their numbers, as they should be
    "torch.distributed process group is initialized, but parallel_mode",  # the engine's own, of one process
)


def _tells(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_SAYS_NOTHING)


for _name in ("transformers.trainer_utils", "transformers.training_args"):
    logging.getLogger(_name).addFilter(_tells)


@contextmanager
def without_bars() -> Iterator[None]:
    """transformers draws no bars, as of the shards of a checkpoint that is written."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
