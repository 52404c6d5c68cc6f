"""Random streams of their own for what draws from global generators, and the state of Python's."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from trainrun.worker.checkpoint import rng


class Stream:
    """A random stream besides torch's global one. Within `with`, it stands in for that."""

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
    """Return the state of Python's global generator, as plain values."""
    version, numbers, gauss = random.getstate()
    return [version, list(numbers), gauss]


def set_generator_state(state: Sequence[Any]) -> None:
    """Put Python's global generator into a state that `generator_state` gave."""
    version, numbers, gauss = state
    random.setstate((version, tuple(numbers), gauss))


class Generators:
    """Python's, torch's and NumPy's global generators as they are within `with`, apart from those outside.

    Takes about 100 µs a time, so it is for what must draw alike on several ranks only.
    """

    def __init__(self) -> None:
        self._seed = 0
        self._states: dict[str, Any] | None = None  # None until the first use
        self._outside: dict[str, Any] = {}

    def seed(self, seed: int) -> None:
        """Begin anew."""
        self._seed, self._states = seed, None

    def __enter__(self) -> None:
        self._outside = rng.state(_HOST)
        if self._states is None:
            seed_generators(self._seed)
        else:
            rng.restore(self._states, _HOST)

    def __exit__(self, *error: object) -> None:
        self._states = rng.state(_HOST)
        rng.restore(self._outside, _HOST)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the generators, as plain values and tensors."""
        return {"seed": self._seed, "states": self._states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._seed, self._states = state["seed"], state["states"]


_HOST = torch.device("cpu")


def seed_generators(seed: int) -> None:
    """Seed Python's, torch's and NumPy's global generators."""
    torch.manual_seed(seed % 2**63)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)
