"""What a run in the test's own process changes in that process, and changing it back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def kept_settings() -> Iterator[None]:
    """Put Python's and torch's generators and torch's deterministic mode back at the end."""
    generators = random.getstate(), torch.get_rng_state()
    strict, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    try:
        yield
    finally:
        random.setstate(generators[0])
        torch.set_rng_state(generators[1])
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
