"""Tensors of which each rank may hold a part, and figures about the whole of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Return whether each rank holds a part of this one: a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")  # without it none can have been made
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor.

    Of one that is not sharded, that is all.
    """
    if not is_sharded(tensor):
        return tensor
    part: Any = tensor
    found: Tensor = part.to_local()
    return found


class OverRanks:
    """Combines figures about parts of tensors into figures about the whole tensors.

    Made from the tensors once; if none is sharded there is nothing to combine. Otherwise all ranks must call it.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._masks: list[tuple[dist.ProcessGroup, Tensor]] = []
        layouts: dict[tuple[Any, int], list[int]] = {}
        for place, tensor in enumerate(tensors):
            if is_sharded(tensor):
                for dimension, mesh in _sharding(tensor):
                    layouts.setdefault((mesh, dimension), []).append(place)
        for (mesh, dimension), places in layouts.items():
            mask = torch.zeros(len(tensors), dtype=torch.bool)
            mask[places] = True
            self._masks.append((mesh.get_group(dimension), mask.to(tensors[places[0]].device)))

    @property
    def needed(self) -> bool:
        """Whether any tensor is sharded."""
        return bool(self._masks)

    def __call__(self, figures: Tensor, how: dist.ReduceOp.RedOpType) -> Tensor:
        """Combine the figures of all ranks.

        `figures` has one row a tensor, about this rank's part. The result has the figures about the whole.
        """
        for group, mask in self._masks:
            combined = figures.clone()
            dist.all_reduce(combined, how, group)
            shaped = mask.reshape(-1, *[1] * (figures.ndim - 1))
            figures = torch.where(shaped, combined, figures)
        return figures


def _sharding(tensor: Any) -> list[tuple[int, Any]]:
    """Return the mesh dimensions along which a DTensor is cut.

    Each comes with the mesh.
    """
    return [(number, tensor.device_mesh) for number, how in enumerate(tensor.placements) if how.is_shard()]
