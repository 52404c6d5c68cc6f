"""A random stream of its own for what draws from torch's global generator."""

from __future__ import annotations

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
