"""How much is in a batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trainrun import UsageError
from trainrun_callbacks.selecting import fits, named_tensors


def samples(batch: Any) -> int:
    """Return the number of samples.

    It is the length of the first tensor, or 1 if there is none.
    """
    first = next((tensor for _, tensor in named_tensors(batch)), None)
    return first.shape[0] if first is not None and first.ndim else 1


def chosen(batch: Any, pattern: str) -> Tensor:
    """Return the first tensor of a batch whose name fits.

    Raises UsageError naming those there are.
    """
    names = []
    for name, tensor in named_tensors(batch):
        if fits(name, (pattern,)):
            return tensor
        names.append(name)
    raise UsageError(f"{pattern!r} fits no tensor of the batch; there are: {', '.join(names) or 'none'}")
