"""A random stream of its own for what draws from torch's global generator, and the state of Python's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch


class Stream:
    """A random stream beside torch's global one. Within `with`, it stands in for that."""

    def __init__(self) -> None:
        self.state = torch.Generator().get_state()
        self._outside = self.state

    def seed(self, seed: int) -> None:
        """Begin anew."""
        self.state = torch.Generator().manual_seed(seed % 2**63).get_state()

    def __enter__(self) -> None:
        self._outside = torch.get_rng_state()
        torch.set_rng_state(self.state)

    def __exit__(self, *error: object) -> None:
        self.state = torch.get_rng_state()
        torch.set_rng_state(self._outside)


def generator_state() -> list[Any]:
    """The state of Python's global generator, as plain values."""
    version, numbers, gauss = random.getstate()
    return [version, list(numbers), gauss]


def set_generator_state(state: Sequence[Any]) -> None:
    """Put Python's global generator into a state that `generator_state` gave."""
    version, numbers, gauss = state
    random.setstate((version, tuple(numbers), gauss))
