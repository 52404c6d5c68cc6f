"""What a run in the test's own process changes in that process, and changing it back."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def kept_settings() -> Iterator[None]:
    """Restore generators, deterministic mode and environment variables at the end.

    The generators are Python's and torch's, the mode is torch's. New variables are dropped.
    """
    generators = random.getstate(), torch.get_rng_state()
    before = set(os.environ)
    strict, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    try:
        yield
    finally:
        for name in set(os.environ) - before:
            del os.environ[name]
        random.setstate(generators[0])
        torch.set_rng_state(generators[1])
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)


@contextmanager
def one_thread() -> Iterator[None]:
    """Have torch use no threads of its own.

    They would not survive a fork.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
