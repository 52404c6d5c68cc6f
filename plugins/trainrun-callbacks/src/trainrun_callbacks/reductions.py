"""What plugins compute over all parameters at once, or over all ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel


def total_norm(model: torch.nn.Module, kind: float) -> torch.Tensor:
    """Return the norm of all gradients together.

    Those of sharded parameters count over all ranks. Collective if there are such.
    """
    gradients = [one.grad for one in model.parameters() if one.grad is not None]
    if kind != math.inf:
        norm = torch.nn.utils.get_total_norm(gradients, kind)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm
    largest = _largest(gradients).max()
    sharded = any(isinstance(one, DTensor) for one in gradients)
    return torch.stack(_of_ranks(largest)).max() if sharded else largest


def not_finite(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return for each tensor whether it holds values that are not finite.

    The result is one tensor on the device; of sharded ones this shard counts.
    """
    # The maximum rather than the 2-norm, whose squares overflow for large but finite numbers.
    return ~torch.isfinite(_largest(tensors))


def same_everywhere(model: torch.nn.Module) -> bool:
    """Return whether all ranks have the same gradients after they were reduced."""
    return isinstance(model, DistributedDataParallel) or not dist.is_initialized() or dist.get_world_size() == 1


def of_any_rank(flags: torch.Tensor) -> torch.Tensor:
    """Return the flags that are set on any rank. A collective."""
    together = flags.to(torch.uint8)
    dist.all_reduce(together, op=dist.ReduceOp.MAX)
    return together.bool()


def means_over_ranks(sums: Sequence[tuple[torch.Tensor, int]]) -> list[float]:
    """Divide each sum by its number of samples, both over all ranks.

    The sums are those of scalars. Waits for the device, once. A collective if there are several ranks.
    """
    if not sums:
        return []
    device = sums[-1][0].device  # those that a checkpoint held are on the host
    totals = torch.stack([total.detach().to(device, torch.float64).reshape(()) for total, _ in sums])
    together = torch.stack([totals, torch.tensor([samples for _, samples in sums], dtype=torch.float64, device=device)])
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(together)
    means: list[float] = (together[0] / together[1]).tolist()
    return means


def _largest(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the largest magnitude in each tensor; NaN if there is one.

    Of sharded tensors, this shard counts.
    """
    shards = _shards(tensors)
    if all(one.device.type == "cpu" and one.is_floating_point() for one in shards):
        # Several times as fast as the norm there.
        ends = torch.stack([end for one in shards for end in one.aminmax()])
        return ends.reshape(-1, 2).abs().amax(1)
    return torch.stack(torch._foreach_norm(shards, math.inf))


def _shards(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return what of each tensor is on this rank.

    A shard without elements has no maximum, and a zero takes its place.
    """
    here = [one.to_local() if isinstance(one, DTensor) else one for one in tensors]
    return [one if one.numel() else one.new_zeros(1) for one in here]


def _of_ranks(value: torch.Tensor) -> list[torch.Tensor]:
    # Not reduced: the maximum of a NaN and a number is the one or the other there.
    values = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(values, value)
    return values
