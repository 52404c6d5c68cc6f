"""What one update of the training consists of on one rank, and how large a batch is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

NOTHING: Any = object()
"""Stands for a batch where there is none."""


@dataclass(frozen=True)
class Update:
    """One update of this rank: the weight of each micro-batch's loss, its samples here, and the samples of all ranks.

    Weights are such that the gradients, averaged over ranks, are those of the mean over all samples.
    """

    weights: tuple[float, ...]
    sizes: tuple[int, ...]
    samples: int


def batch_size(batch: Any) -> int | None:
    """The number of samples in a batch: the first dimension of the first tensor found in it, or None."""
    if isinstance(batch, torch.Tensor):
        return batch.shape[0] if batch.ndim else 1
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else ()
    return next((size for part in parts if (size := batch_size(part)) is not None), None)
