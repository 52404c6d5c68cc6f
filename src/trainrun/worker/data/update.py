"""What one update of the training consists of on one rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NOTHING: Any = object()
"""Stands for a missing batch."""


@dataclass
class Update:
    """One update of this rank: the weight of each micro-batch's loss, its samples here, and the samples of all ranks.

    Weights are such that the gradients, averaged over ranks, are those of the mean over all samples. Of a custom
    loader's batches they are known once the first of the update has been fetched.
    """

    weights: tuple[float, ...]
    sizes: tuple[int, ...]
    samples: int
