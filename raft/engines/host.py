"""Keeps an engine in the trainer's process from changing the state of that process: threads, memory, random numbers."""

import contextlib
import ctypes
import logging
import mmap
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)


@contextlib.contextmanager
def undisturbed(quiet: bool = True) -> Iterator[None]:
    """Restores the random states, torch's threads and the environment afterwards. quiet: nothing is printed inside.

    When it starts, vLLM seeds all random generators. Its CPU worker sets torch to one thread and replaces
    `torch.set_num_threads` by a function without effect. It adds libraries to LD_PRELOAD for worker processes; there
    are none here, but our own subprocesses would inherit it.
    """
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    environment = dict(os.environ)
    try:
        with own_random_state(), _silence() if quiet else contextlib.nullcontext():
            yield
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for name in os.environ.keys() | environment.keys():
            if name in environment:
                os.environ[name] = environment[name]
            elif not name.startswith("VLLM_"):
                del os.environ[name]


@contextlib.contextmanager
def own_random_state() -> Iterator[None]:
    """Restores the states of torch's generators afterwards: dropout must not depend on the length of the rollouts."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextlib.contextmanager
def fit_threads(parameters: int) -> Iterator[None]:
    """Inside this context a model of fewer than 10M parameters has one CPU thread; a larger one as many as before.

    Measured with 2M parameters on two cores, 16 answers of 25 tokens: 0.30 s with one thread. A second thread saves a
    quarter of that on an idle machine. On a busy one, where the two wait for each other after each small product, it
    cost 1 to 4 s, and 600 answers took 119 s instead of 14. From about 10M parameters on, the products take most of the
    time, and more threads help.
    """
    threads = torch.get_num_threads()
    if parameters < 10_000_000:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Sends what this process prints into the debug log, by its file descriptors: C++ code prints too."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for fd, original in enumerate(kept, start=1):
                os.dup2(original, fd)
                os.close(original)
            file.seek(0)
            log.debug("the engine's output while it started:\n%s", file.read().decode(errors="replace"))


def discard_pages(tensors: Iterable[Tensor]) -> None:
    """Gives the physical memory of CPU tensors back to the system. They keep their addresses and then read as zeros.

    Only on Linux; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for storage in {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}.values():
        # Only pages that lie wholly within the tensor: the first and the last may hold other data too.
        first = -(-storage.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (storage.data_ptr() + storage.nbytes()) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first and libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED):
            log.warning("the KV cache stays in memory: madvise failed, %s", os.strerror(ctypes.get_errno()))
