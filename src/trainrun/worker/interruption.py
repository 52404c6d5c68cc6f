"""Interrupting an evaluation if a stop was requested.

Steps have the gradient reduction to ride on, and evaluations have nothing: the ranks ask one another about once a
second. How many batches that is they work out from the slowest rank's time for one, so that all ask at the same batch.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch

_EVERY = 1.0  # seconds between two questions
_MOST = 10_000  # batches between two questions

Gather = Callable[[torch.Tensor], list[torch.Tensor]]


class Interruption:
    """Counts the evaluation batches of one rank. gather: a host tensor from all ranks; None for a single worker."""

    def __init__(self, gather: Gather | None) -> None:
        self._gather = gather
        self._batches = 0
        self._until = 1
        self._asked_at = perf_counter()

    def begin(self) -> None:
        """Begin an evaluation."""
        self._batches = 0
        self._asked_at = perf_counter()

    def is_asked(self, *, here: bool) -> bool:
        """Return whether any rank has a request. Call it after each batch, on all ranks alike.

        here: whether this rank has one.
        """
        self._batches += 1
        if self._gather is None:
            return here
        if self._batches < self._until:
            return False
        now = perf_counter()
        mine = torch.tensor([float(here), (now - self._asked_at) / self._batches], dtype=torch.float64)
        asked, seconds = torch.stack(self._gather(mine)).amax(dim=0).tolist()
        self._until = int(min(max(1.0, _EVERY / max(seconds, 1e-9)), _MOST))
        self._batches, self._asked_at = 0, perf_counter()
        return bool(asked)
